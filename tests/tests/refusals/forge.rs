//! Tokens as they should be, and in every way as they should not.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tests::cluster::Identity;
use uuid::Uuid;

/// What all claims are bound to, and its hash: the example of RFC 7636, appendix B.
pub(crate) const SECRET: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const SECRET_HASH: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

/// A key set's issuer, and who signs for it.
pub(crate) struct Forge {
    issuer: String,
    kid: String,
    key: EncodingKey,
    public: Vec<u8>,
}

pub(crate) fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn with_secret(token: &str) -> String {
    format!("{token}~{SECRET}")
}

/// A grant: `*` or a machine's UUID, and actions.
pub(crate) fn grant(vm: &str, actions: &[&str]) -> Value {
    json!({ "vm": vm, "actions": actions })
}

impl Forge {
    pub(crate) fn new(issuer: &str, kid: &str, key: &Path, jwks: &Path) -> Self {
        let set: Value = serde_json::from_slice(&fs::read(jwks).unwrap()).unwrap();
        Self {
            issuer: issuer.to_owned(),
            kid: kid.to_owned(),
            key: EncodingKey::from_ed_pem(&fs::read(key).unwrap()).unwrap(),
            public: URL_SAFE_NO_PAD.decode(set["keys"][0]["x"].as_str().unwrap()).unwrap(),
        }
    }

    /// The issuer that most tests use: it may grant everything.
    pub(crate) fn ravada(identity: &Identity) -> Self {
        Self::new(identity.issuer(), identity.kid(), &identity.issuer_key(), &identity.jwks())
    }

    /// Claims that are good for five minutes.
    pub(crate) fn claims(&self, grants: Value) -> Value {
        let now = now();
        json!({
            "iss": self.issuer, "sub": "mallory", "aud": "ravada-snapshots", "jti": Uuid::new_v4(), "iat": now - 1,
            "exp": now + 300, "cnf": { "secret#S256": SECRET_HASH }, "grants": grants,
        })
    }

    /// A credential: signed as it should be, and with the secret. So are the others.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(claims, &self.kid)
    }

    /// Signed by the issuer's key under another name.
    pub(crate) fn sign_as(&self, claims: &Value, kid: &str) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(kid.to_owned());
        with_secret(&encode(&header, claims, &self.key).unwrap())
    }

    /// Signed with the public key, which everybody has, as if it were a secret.
    pub(crate) fn sign_by_public_key(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(self.kid.clone());
        with_secret(&encode(&header, claims, &EncodingKey::from_secret(&self.public)).unwrap())
    }

    /// Not signed, and saying so.
    pub(crate) fn unsigned(&self, claims: &Value) -> String {
        let header = json!({ "typ": "JWT", "alg": "none", "kid": self.kid });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        with_secret(&format!("{}.{}.", part(&header), part(claims)))
    }
}
