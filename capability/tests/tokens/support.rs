//! Two issuers with their key sets on disk, and tokens signed by them in any shape.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use capability::{IssuerConfig, Signer, Verifier, generate_issuer_key};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, encode};
use serde_json::{Value, json};
use snapshot_core::authority::{Action, Grant};
use tempfile::TempDir;

pub(crate) const NOW: i64 = 1_790_000_000;
pub(crate) const VM: &str = "0191f7a0-0000-7000-8000-00000000000a";

/// What [`good_claims`] is bound to, and its hash: the example of RFC 7636, appendix B.
pub(crate) const SECRET: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
pub(crate) const SECRET_HASH: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

/// Two issuers, each with a key set on disk: "ravada" may do much with named VMs, "ops" may only read, but anywhere.
pub(crate) struct Issuers {
    dir: TempDir,
}

impl Issuers {
    pub(crate) fn new() -> Self {
        let issuers = Self { dir: tempfile::tempdir().unwrap() };
        issuers.add_key("ravada", "k1");
        issuers.add_key("ops", "o1");
        issuers
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn jwks(&self, issuer: &str) -> PathBuf {
        self.path(&format!("{issuer}.jwks.json"))
    }

    pub(crate) fn key(&self, kid: &str) -> PathBuf {
        self.path(&format!("{kid}.pem"))
    }

    pub(crate) fn add_key(&self, issuer: &str, kid: &str) {
        generate_issuer_key(&self.key(kid), &self.jwks(issuer), kid).unwrap();
    }

    pub(crate) fn signer(&self, issuer: &str, kid: &str) -> Signer {
        Signer::load(&self.key(kid), kid, issuer).unwrap()
    }

    pub(crate) fn verifier(&self) -> Verifier {
        let ravada = IssuerConfig::new("ravada", self.jwks("ravada"), [Action::Read, Action::Create, Action::Revert]);
        let ops = IssuerConfig::new("ops", self.jwks("ops"), [Action::Read, Action::Admin]);
        let ops = IssuerConfig { any_vm: true, ..ops };
        Verifier::load(vec![ravada, ops]).unwrap()
    }

    /// A token, without its secret, with these claims changed (`null` removes one), signed properly.
    pub(crate) fn altered(&self, changes: Value) -> String {
        let mut claims = good_claims();
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => claims.as_object_mut().unwrap().remove(name),
                value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
            };
        }
        self.sign(&eddsa("k1"), &claims, "k1")
    }

    pub(crate) fn sign(&self, header: &Header, claims: &Value, kid: &str) -> String {
        encode(header, claims, &EncodingKey::from_ed_pem(&fs::read(self.key(kid)).unwrap()).unwrap()).unwrap()
    }

    pub(crate) fn public_key(&self, issuer: &str) -> Vec<u8> {
        let set: Value = serde_json::from_slice(&fs::read(self.jwks(issuer)).unwrap()).unwrap();
        let key = DecodingKey::from_ed_components(set["keys"][0]["x"].as_str().unwrap()).unwrap();
        key.try_get_as_bytes().unwrap().to_vec()
    }
}

pub(crate) fn actions(list: &[Action]) -> BTreeSet<Action> {
    list.iter().copied().collect()
}

pub(crate) fn grant(vm: &str, list: &[Action]) -> Grant {
    Grant { vm: vm.parse().unwrap(), actions: actions(list) }
}

pub(crate) fn eddsa(kid: &str) -> Header {
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(kid.to_owned());
    header
}

pub(crate) fn good_claims() -> Value {
    json!({
        "iss": "ravada", "sub": "alice", "aud": "ravada-snapshots", "jti": "t-1", "iat": NOW, "exp": NOW + 300,
        "cnf": { "secret#S256": SECRET_HASH }, "grants": [{ "vm": VM, "actions": ["read", "revert"] }],
    })
}
