//! From grants to a token and its secret.

use std::fmt;
use std::fs;
use std::path::Path;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use snapshot_core::authority::{AUDIENCE, Claims, Grant};
use uuid::Uuid;

use crate::credential::{SEPARATOR, new_secret};
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

    /// A credential for `subject`, `<JWT>~<secret>`: a token that lives for `lifetime_seconds` from `now_unix`, with a `jti` of
    /// its own, and the secret that it is bound to.
    pub fn mint(
        &self,
        subject: &str,
        grants: Vec<Grant>,
        lifetime_seconds: i64,
        now_unix: i64,
    ) -> Result<String, KeyError> {
        let (token, secret) = self.sign(subject, grants, lifetime_seconds, now_unix)?;
        Ok(format!("{token}{SEPARATOR}{secret}"))
    }

    /// As [`Signer::mint`], a token for agents alone. It is bound to a secret that is forgotten here, so that nobody can make a
    /// credential for the API of it.
    pub fn mint_for_agents(
        &self,
        subject: &str,
        grants: Vec<Grant>,
        lifetime_seconds: i64,
        now_unix: i64,
    ) -> Result<String, KeyError> {
        self.sign(subject, grants, lifetime_seconds, now_unix).map(|(token, _forgotten)| token)
    }

    fn sign(
        &self,
        subject: &str,
        grants: Vec<Grant>,
        lifetime_seconds: i64,
        now_unix: i64,
    ) -> Result<(String, String), KeyError> {
        if !(1..=MAX_LIFETIME_SECONDS).contains(&lifetime_seconds) {
            return Err(KeyError::BadLifetime(lifetime_seconds));
        }
        let (secret, confirmation) = new_secret()?;
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: subject.to_owned(),
            aud: AUDIENCE.to_owned(),
            jti: Uuid::new_v4().to_string(),
            iat: now_unix,
            nbf: None,
            exp: now_unix.saturating_add(lifetime_seconds),
            cnf: Some(confirmation),
            grants,
        };
        let token = encode(&self.header, &claims, &self.key).map_err(|_| KeyError::Crypto)?;
        Ok((token, secret))
    }
}
