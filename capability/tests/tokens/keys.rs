//! Key sets that change on disk, break, and are made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use capability::{IssuerConfig, KeyError, Signer, TokenError, Verifier, generate_issuer_key};
use serde_json::{Value, json};

use crate::support::{Issuers, NOW};

#[test]
fn keys_rotate_on_disk() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    let first = issuers.signer("ravada", "k1").mint_for_agents("alice", Vec::new(), 300, NOW).unwrap();
    issuers.add_key("ravada", "k2");
    let second = issuers.signer("ravada", "k2").mint_for_agents("alice", Vec::new(), 300, NOW).unwrap();
    verifier.reload();
    assert!(
        verifier.verify_token(&first, NOW).is_ok() && verifier.verify_token(&second, NOW).is_ok(),
        "both, while rotating"
    );

    let mut set: Value = serde_json::from_slice(&fs::read(issuers.jwks("ravada")).unwrap()).unwrap();
    set["keys"].as_array_mut().unwrap().remove(0);
    fs::write(issuers.jwks("ravada"), set.to_string()).unwrap();
    verifier.reload();
    assert_eq!(verifier.verify_token(&first, NOW).err(), Some(TokenError::UnknownKey), "revoked");
    assert!(verifier.verify_token(&second, NOW).is_ok());
}

#[test]
fn a_verification_notices_a_new_key_by_itself() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    issuers.add_key("ravada", "k2");
    let token = issuers.signer("ravada", "k2").mint_for_agents("alice", Vec::new(), 300, NOW).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while verifier.verify_token(&token, NOW).is_err() {
        assert!(std::time::Instant::now() < deadline, "the key set was not reloaded");
        std::thread::yield_now();
    }
}

#[test]
fn a_broken_key_set_leaves_the_old_one_in_place() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    let token = issuers.altered(json!({}));
    let jwks = issuers.jwks("ravada");
    let good = fs::read(&jwks).unwrap();
    for broken in ["", "{", r#"{"keys":[{"kty":"RSA"}]}"#] {
        fs::write(&jwks, broken).unwrap();
        verifier.reload();
        assert!(verifier.verify_token(&token, NOW).is_ok(), "{broken:?}");
    }
    fs::remove_file(&jwks).unwrap();
    verifier.reload();
    assert!(verifier.verify_token(&token, NOW).is_ok(), "missing");
    fs::write(&jwks, r#"{"keys":[]}"#).unwrap();
    verifier.reload();
    assert_eq!(verifier.verify_token(&token, NOW).err(), Some(TokenError::UnknownKey), "an empty set revokes all");
    fs::write(&jwks, good).unwrap();
    verifier.reload();
    assert!(verifier.verify_token(&token, NOW).is_ok(), "repaired");
}

#[test]
fn a_broken_key_set_is_an_error_at_the_start() {
    let issuers = Issuers::new();
    let config = |issuer: &str, jwks: PathBuf| IssuerConfig::new(issuer, jwks, []);
    let missing = Verifier::load(vec![config("x", issuers.path("none.json"))]);
    assert!(matches!(missing, Err(KeyError::Io { .. })));
    let not_a_set = Verifier::load(vec![config("x", issuers.key("k1"))]);
    assert!(matches!(not_a_set, Err(KeyError::Invalid { .. })));
    let twice = vec![config("x", issuers.jwks("ops")), config("x", issuers.jwks("ravada"))];
    assert!(matches!(Verifier::load(twice), Err(KeyError::DuplicateIssuer(_))));
}

#[test]
fn keys_are_made_with_care() {
    let issuers = Issuers::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&issuers.key("k1")), 0o600);
    let before = fs::read(issuers.jwks("ravada")).unwrap();
    for (key, kid) in [("k1.pem", "k7"), ("new.pem", "k1"), ("new.pem", "")] {
        let made = generate_issuer_key(&issuers.path(key), &issuers.jwks("ravada"), kid);
        assert!(made.is_err(), "{key} {kid:?}");
    }
    assert!(!issuers.path("new.pem").exists());
    assert_eq!(fs::read(issuers.jwks("ravada")).unwrap(), before);
    assert!(issuers.altered(json!({})).len() < 1000);

    let signer = issuers.signer("ravada", "k1");
    for seconds in [i64::MIN, 0, 901] {
        assert!(matches!(signer.mint("a", Vec::new(), seconds, NOW), Err(KeyError::BadLifetime(_))), "{seconds}");
    }
    assert!(!format!("{signer:?}").contains("PRIVATE"));
    assert!(Signer::load(&issuers.jwks("ravada"), "k1", "ravada").is_err());
}
