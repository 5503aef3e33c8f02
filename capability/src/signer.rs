//! From grants to a token.

use std::fmt;
use std::fs;
use std::path::Path;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use snapshot_core::authority::{AUDIENCE, Claims, Grant};
use uuid::Uuid;

use crate::jwks::invalid;
use crate::{KeyError, MAX_LIFETIME_SECONDS};

/// Mints tokens as one issuer.
pub struct Signer {
    key: EncodingKey,
    header: Header,
    issuer: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("issuer", &self.issuer).field("kid", &self.header.kid).finish_non_exhaustive()
    }
}

impl Signer {
    /// Signs with the Ed25519 key in this file (PKCS#8, PEM) as `issuer`, whose key set knows its public half as `kid`.
    pub fn load(private_key: &Path, kid: &str, issuer: &str) -> Result<Self, KeyError> {
        let pem = fs::read(private_key).map_err(|source| KeyError::Io { path: private_key.to_owned(), source })?;
        let key = EncodingKey::from_ed_pem(&pem)
            .map_err(|_| invalid(private_key, "not an Ed25519 private key (PKCS#8, PEM)"))?;
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(kid.to_owned());
        let signer = Self { key, header, issuer: issuer.to_owned() };
        // PEM says what a key claims to be; that it signs is seen now and not at the first request.
        signer.mint("self-test", Vec::new(), 1, 0).map_err(|_| invalid(private_key, "the key does not sign"))?;
        Ok(signer)
    }

    /// A token for `subject` that lives for `lifetime_seconds` from `now_unix`, with a `jti` of its own.
    pub fn mint(
        &self,
        subject: &str,
        grants: Vec<Grant>,
        lifetime_seconds: i64,
        now_unix: i64,
    ) -> Result<String, KeyError> {
        if !(1..=MAX_LIFETIME_SECONDS).contains(&lifetime_seconds) {
            return Err(KeyError::BadLifetime(lifetime_seconds));
        }
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: subject.to_owned(),
            aud: AUDIENCE.to_owned(),
            jti: Uuid::new_v4().to_string(),
            iat: now_unix,
            nbf: None,
            exp: now_unix.saturating_add(lifetime_seconds),
            grants,
        };
        encode(&self.header, &claims, &self.key).map_err(|_| KeyError::Crypto)
    }
}
