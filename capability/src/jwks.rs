//! The key set of one issuer: a JWKS file (RFC 7517) with Ed25519 public keys (RFC 8037).
//!
//! A file is taken whole or not at all. An entry that cannot be used, or that should not be there (a private key), means
//! that somebody made a mistake, and half a key set is a worse answer to that than the one from before.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::KeyError;

/// The most bytes of a key set that are read: some hundreds of keys.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Public keys by their `kid`.
pub(crate) type KeySet = HashMap<String, DecodingKey>;

#[derive(Deserialize)]
struct JwksFile {
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    kty: String,
    crv: Option<String>,
    kid: Option<String>,
    x: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    public_key_use: Option<String>,
    d: Option<IgnoredAny>,
}

/// Reads a key set's bytes, bounded.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    let io = |source| KeyError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(invalid(path, format!("more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The keys in these bytes, which came from `path`. No keys at all is a valid set: it revokes them.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<KeySet, KeyError> {
    let file: JwksFile = serde_json::from_slice(bytes).map_err(|e| invalid(path, format!("not a JWKS: {e}")))?;
    let mut keys = KeySet::with_capacity(file.keys.len());
    for (index, entry) in file.keys.iter().enumerate() {
        let (kid, key) = entry.decode().map_err(|problem| invalid(path, format!("key {index}: {problem}")))?;
        if keys.insert(kid.to_owned(), key).is_some() {
            return Err(invalid(path, format!("key {index}: the kid {kid:?} is there twice")));
        }
    }
    Ok(keys)
}

pub(crate) fn invalid(path: &Path, problem: impl Into<String>) -> KeyError {
    KeyError::Invalid { path: path.to_owned(), problem: problem.into() }
}

impl Entry {
    fn decode(&self) -> Result<(&str, DecodingKey), &'static str> {
        if self.d.is_some() {
            return Err("a private key in a file of public keys");
        }
        if self.kty != "OKP" || self.crv.as_deref() != Some("Ed25519") {
            return Err("not an Ed25519 key (kty OKP, crv Ed25519)");
        }
        if self.alg.as_deref().is_some_and(|alg| alg != "EdDSA" && alg != "Ed25519") {
            return Err("its alg is not EdDSA");
        }
        if self.public_key_use.as_deref().is_some_and(|intended| intended != "sig") {
            return Err("its use is not sig");
        }
        let kid = self.kid.as_deref().filter(|kid| !kid.is_empty()).ok_or("it has no kid")?;
        let x = self.x.as_deref().ok_or("it has no x")?;
        let key = DecodingKey::from_ed_components(x).map_err(|_| "its x is not base64url")?;
        match key.try_get_as_bytes() {
            Ok(raw) if raw.len() == 32 => Ok((kid, key)),
            _ => Err("its x is not 32 bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    fn problem(keys: &str) -> String {
        match parse(Path::new("jwks.json"), format!(r#"{{"keys":[{keys}]}}"#).as_bytes()) {
            Ok(set) => format!("{} keys", set.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_set_is_taken_whole_or_not_at_all() {
        assert_eq!(problem(""), "0 keys");
        assert_eq!(problem(GOOD), "1 keys");
        let faults = [
            (GOOD.replace("OKP", "oct"), "not an Ed25519 key"),
            (GOOD.replace("Ed25519", "X25519"), "not an Ed25519 key"),
            (GOOD.replace(r#""kid":"a","#, ""), "no kid"),
            (GOOD.replace("11qY", "11"), "not"),
            (GOOD.replace("11qYAYKx", ""), "not 32 bytes"),
            (GOOD.replace(r#""kid""#, r#""d":"secret","kid""#), "private key"),
            (GOOD.replace(r#""kid""#, r#""alg":"HS256","kid""#), "alg"),
            (GOOD.replace(r#""kid""#, r#""use":"enc","kid""#), "use"),
            (GOOD.to_owned(), "twice"),
        ];
        for (fault, expected) in faults {
            let said = problem(&format!("{GOOD},{fault}"));
            assert!(said.contains(expected), "{fault}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
