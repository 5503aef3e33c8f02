//! Tokens: any text, and any payload that a listed issuer has signed.
//!
//! Tokens as an agent receives them, and credentials with a secret as the API does. What is accepted must be what was signed, by a listed issuer, within its ceiling and its time.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use capability::{CLOCK_SKEW_SECONDS, IssuerConfig, MAX_LIFETIME_SECONDS, Verifier, generate_issuer_key};
use libfuzzer_sys::fuzz_target;
use snapshot_core::authority::{Action, VmSelector};

const NOW: i64 = 1_700_000_000;
/// What the seeds are bound to: the example of RFC 7636, appendix B.
const SECRET: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const ALLOWED: [Action; 2] = [Action::Read, Action::Create];

struct World {
    verifier: Verifier,
    key: Ed25519KeyPair,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let (private, jwks) = (folder.path().join("key.pem"), folder.path().join("jwks.json"));
    generate_issuer_key(&private, &jwks, "k").expect("a key");
    let config = serde_json::json!({"issuer": "i", "jwks": jwks, "actions": ["read", "create"], "any_vm": false});
    let config: IssuerConfig = serde_json::from_value(config).expect("a configuration");
    let pem = pem::parse(fs::read(&private).expect("the key")).expect("PEM");
    let key = Ed25519KeyPair::from_pkcs8(pem.contents()).expect("a key pair");
    World { verifier: Verifier::load(vec![config]).expect("a verifier"), key }
});

fn signed(payload: &[u8]) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","kid":"k"}"#);
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
    let signature = URL_SAFE_NO_PAD.encode(WORLD.key.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    if kind % 2 == 0 {
        if let Ok(text) = std::str::from_utf8(rest) {
            assert!(WORLD.verifier.verify_token(text, NOW).is_err(), "nobody signed this");
            assert!(WORLD.verifier.verify_credential(text, NOW).is_err(), "nobody signed this");
        }
        return;
    }
    let token = signed(rest);
    assert!(WORLD.verifier.verify_credential(&token, NOW).is_err(), "there is no secret");
    let Ok(caller) = WORLD.verifier.verify_token(&token, NOW) else { return };
    let secrets = [SECRET, "AAAAAAAAAAAAAAAAAAAAAA", ""].map(|secret| format!("{token}~{secret}"));
    let [with_secret, others @ ..] = &secrets;
    if let Ok((same, alone)) = WORLD.verifier.verify_credential(with_secret, NOW) {
        assert_eq!((&same, &alone), (&caller, &token));
    }
    for other in others {
        assert!(WORLD.verifier.verify_credential(other, NOW).is_err(), "nobody knows a secret for this");
    }
    assert!(
        secrets.iter().all(|credential| WORLD.verifier.verify_token(credential, NOW).is_err()),
        "agents take no secret"
    );
    let left = caller.expires_at_unix() - NOW;
    assert!((-CLOCK_SKEW_SECONDS..=MAX_LIFETIME_SECONDS + CLOCK_SKEW_SECONDS).contains(&left), "{caller:?}");
    assert_eq!(caller.issuer(), "i");
    assert!(!caller.subject().is_empty() && !caller.token_id().is_empty(), "{caller:?}");
    for grant in caller.grants() {
        assert!(
            grant.vm != VmSelector::Any && grant.actions.iter().all(|action| ALLOWED.contains(action)),
            "{grant:?}"
        );
    }
});
