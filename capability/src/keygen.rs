//! A new key for an issuer: the private half for whoever mints, the public half into a key set for whoever verifies.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::signature::Ed25519KeyPair;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::jwks::{self, invalid};
use crate::{KeyError, Signer};

/// Makes an Ed25519 key pair: the private key to `private_key` (PKCS#8, PEM, mode 0600; an existing file is refused),
/// the public key as `kid` to the key set at `jwks`, which is made or added to.
///
/// Rotation: make a new key with a new `kid`, hand the key set to the verifiers, mint with the new key, and after
/// [`MAX_LIFETIME_SECONDS`](crate::MAX_LIFETIME_SECONDS) take the old `kid` out of the set.
pub fn generate_issuer_key(private_key: &Path, jwks: &Path, kid: &str) -> Result<(), KeyError> {
    let mut set = read_set(jwks)?;
    // Version 1 of the format, the private key alone: what OpenSSL writes, and what others are most likely to read.
    let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Crypto)?;
    let document = pair.to_pkcs8v1().map_err(|_| KeyError::Crypto)?;
    let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", document.as_ref()));

    let entry = public_entry(&EncodingKey::from_ed_der(document.as_ref()), kid)?;
    let keys = set.get_mut("keys").and_then(Value::as_array_mut).ok_or_else(|| invalid(jwks, "not a JWKS"))?;
    keys.push(entry);
    let text = format!("{set:#}\n");
    // Catches an empty kid and one that the set has already, before anything is written.
    jwks::parse(jwks, text.as_bytes())?;

    write_new(private_key, pem.as_bytes(), 0o600)?;
    let published = Signer::load(private_key, kid, "").and_then(|_| replace(jwks, text.as_bytes()));
    if published.is_err() {
        // A private key without its public half is of no use, and would be in the way of the next attempt.
        fs::remove_file(private_key).map_err(|source| KeyError::Io { path: private_key.to_owned(), source })?;
    }
    published
}

fn read_set(jwks: &Path) -> Result<Value, KeyError> {
    match jwks::read(jwks) {
        Ok(bytes) => {
            jwks::parse(jwks, &bytes)?;
            serde_json::from_slice(&bytes).map_err(|e| invalid(jwks, e.to_string()))
        }
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(json!({ "keys": [] })),
        Err(error) => Err(error),
    }
}

fn public_entry(key: &EncodingKey, kid: &str) -> Result<Value, KeyError> {
    let mut jwk = Jwk::from_encoding_key(key, Algorithm::EdDSA).map_err(|_| KeyError::Crypto)?;
    jwk.common.key_id = Some(kid.to_owned());
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    serde_json::to_value(jwk).map_err(|_| KeyError::Crypto)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| KeyError::Io { path: path.to_owned(), source })
}

/// Verifiers may read the set at any moment, so it changes in one step.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let draft = path.with_file_name(name);
    write_new(&draft, bytes, 0o644)?;
    fs::rename(&draft, path).map_err(|source| KeyError::Io { path: path.to_owned(), source })
}
