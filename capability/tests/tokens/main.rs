//! Tokens as they come in: good ones, and every way of being wrong.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows test functions, not their helpers; what panics here is a failed test"
)]

mod keys;
mod support;

use std::fs;

use capability::{IssuerConfig, KeyError, TokenError, Verifier};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use proptest::prelude::*;
use serde_json::json;
use snapshot_core::authority::{
    AboveCeiling, Action, Denied, VmSelector, authorize, authorize_admin, authorize_inventory,
};
use snapshot_core::ids::VmId;

use crate::support::{Issuers, NOW, SECRET, SECRET_HASH, VM, actions, eddsa, good_claims, grant};

#[test]
fn a_minted_credential_is_its_caller() {
    let issuers = Issuers::new();
    let signer = issuers.signer("ravada", "k1");
    let credential = signer.mint("alice", vec![grant(VM, &[Action::Read, Action::Revert])], 300, NOW).unwrap();
    let verifier = issuers.verifier();
    let (caller, token) = verifier.verify_credential(&credential, NOW + 10).unwrap();
    assert_eq!((caller.issuer(), caller.subject(), caller.expires_at_unix()), ("ravada", "alice", NOW + 300));
    assert_eq!(caller.grants(), [grant(VM, &[Action::Read, Action::Revert])]);
    let vm: VmId = VM.parse().unwrap();
    assert!(authorize(&caller, vm, Action::Revert).is_ok());
    assert_eq!(authorize(&caller, vm, Action::Create), Err(Denied::Forbidden { action: Action::Create }));
    assert_eq!(
        verifier.verify_token(&token, NOW + 10).unwrap(),
        caller,
        "an agent is sent the token, and sees the same"
    );

    let again = signer.mint("alice", Vec::new(), 300, NOW).unwrap();
    let (other, _) = verifier.verify_credential(&again, NOW).unwrap();
    assert_ne!(caller.token_id(), other.token_id(), "every token has an id of its own");
    let secret = |credential: &str| credential.split_once('~').unwrap().1.to_owned();
    assert_ne!(secret(&credential), secret(&again), "and a secret");
}

#[test]
fn a_token_without_its_secret_is_for_agents_alone() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    let token = issuers.altered(json!({}));
    let with = |secret: &str| format!("{token}~{secret}");
    assert!(verifier.verify_credential(&with(SECRET), NOW).is_ok());
    assert!(verifier.verify_token(&token, NOW).is_ok());
    let of_another = issuers.signer("ravada", "k1").mint("alice", Vec::new(), 300, NOW).unwrap();
    let (_, another) = of_another.split_once('~').unwrap();
    for wrong in [
        token.clone(),
        with(""),
        with(another),
        with(SECRET_HASH),
        with(&SECRET.to_lowercase()),
        with(&SECRET[1..]),
        with(&format!("{SECRET}A")),
        with(&format!("{SECRET}~")),
        with(&format!("~{SECRET}")),
        with(&format!("{another}~{SECRET}")),
        with(&format!("{SECRET}~{SECRET}")),
        with(&format!("{SECRET}=")),
    ] {
        assert_eq!(verifier.verify_credential(&wrong, NOW).err(), Some(TokenError::Unconfirmed), "{wrong}");
        let late = verifier.verify_credential(&wrong, NOW + 1000);
        assert_eq!(late.err(), Some(TokenError::Unconfirmed), "the secret is looked at first: {wrong}");
    }
    assert_eq!(verifier.verify_credential(&with(SECRET), NOW + 1000).err(), Some(TokenError::Expired));
    for secret in [SECRET, "", another, "~"] {
        assert_eq!(verifier.verify_token(&with(secret), NOW).err(), Some(TokenError::UnexpectedSecret), "{secret}");
    }
    assert_eq!(verifier.verify_credential(&format!("~{SECRET}"), NOW).err(), Some(TokenError::Malformed));
    let long = with(&"A".repeat(9000));
    assert_eq!(verifier.verify_credential(&long, NOW).err(), Some(TokenError::TooLong));
}

#[test]
fn a_token_that_is_bound_to_nothing_is_refused() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    for (cnf, expected) in [
        (json!(null), TokenError::Unbound),
        (json!({ "secret#S256": "" }), TokenError::Unbound),
        (json!({ "secret#S256": SECRET_HASH[1..] }), TokenError::Unbound),
        (json!({ "secret#S256": format!("{SECRET_HASH}=") }), TokenError::Unbound),
        (json!({}), TokenError::Malformed),
        (json!(SECRET_HASH), TokenError::Malformed),
        (json!({ "jkt": SECRET_HASH }), TokenError::Malformed),
        // Nobody would check the other.
        (json!({ "secret#S256": SECRET_HASH, "jkt": SECRET_HASH }), TokenError::Malformed),
    ] {
        let token = issuers.altered(json!({ "cnf": cnf }));
        assert_eq!(verifier.verify_token(&token, NOW).err(), Some(expected), "{cnf}");
        let refused = verifier.verify_credential(&format!("{token}~{SECRET}"), NOW);
        assert_eq!(refused.err(), Some(expected), "{cnf}");
    }
}

#[test]
fn the_wire_form_of_a_grant() {
    let text = serde_json::to_string(&[grant("*", &[Action::Admin]), grant(VM, &[Action::Read])]).unwrap();
    assert_eq!(text, format!(r#"[{{"vm":"*","actions":["admin"]}},{{"vm":"{VM}","actions":["read"]}}]"#));
}

#[test]
fn the_configuration_of_an_issuer() {
    let text = r#"issuer = "ravada"
        jwks = "/etc/ravada.jwks.json"
        actions = ["read", "create"]"#;
    let config: IssuerConfig = toml::from_str(text).unwrap();
    assert_eq!(config.actions, actions(&[Action::Read, Action::Create]));
    assert_eq!((config.any_vm, config.service, config.destructive_uses.get()), (false, false, 16));
    let one = toml::from_str::<IssuerConfig>(&format!("{text}\ndestructive_uses = 1")).unwrap();
    assert_eq!(one.destructive_uses.get(), 1);
    assert!(toml::from_str::<IssuerConfig>(&format!("{text}\ndestructive_uses = 0")).is_err(), "none would be a lie");
    assert!(toml::from_str::<IssuerConfig>(&format!("{text}\nanyvm = true")).is_err(), "a misspelt key is refused");
}

#[test]
fn times_are_bounded_with_a_little_leeway() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    let token = issuers.altered(json!({}));
    for (now, expected) in [
        (NOW - 31, Some(TokenError::NotYetValid)),
        (NOW - 30, None),
        (NOW + 329, None),
        (NOW + 330, Some(TokenError::Expired)),
        (i64::MAX, Some(TokenError::Expired)),
        (i64::MIN, Some(TokenError::NotYetValid)),
    ] {
        assert_eq!(verifier.verify_token(&token, now).err(), expected, "at {now}");
    }
    let later = issuers.altered(json!({ "nbf": NOW + 200 }));
    assert_eq!(verifier.verify_token(&later, NOW).err(), Some(TokenError::NotYetValid));
    assert!(verifier.verify_token(&later, NOW + 200).is_ok());
}

#[test]
fn claims_out_of_bounds_are_refused() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    let cases = [
        (json!({ "exp": NOW + 900 }), None),
        (json!({ "exp": NOW + 901 }), Some(TokenError::BadLifetime)),
        (json!({ "exp": NOW }), Some(TokenError::BadLifetime)),
        (json!({ "iat": i64::MIN, "exp": i64::MAX }), Some(TokenError::BadLifetime)),
        (json!({ "aud": "ravada" }), Some(TokenError::WrongAudience)),
        (json!({ "aud": ["ravada-snapshots"] }), Some(TokenError::Malformed)),
        (json!({ "jti": "" }), Some(TokenError::BadIdentity)),
        (json!({ "sub": "" }), Some(TokenError::BadIdentity)),
        (json!({ "sub": "alice\nroot" }), Some(TokenError::BadIdentity)),
        (json!({ "jti": "x".repeat(257) }), Some(TokenError::BadIdentity)),
        (json!({ "iss": "nobody" }), Some(TokenError::UnknownIssuer)),
        (json!({ "grants": [{ "vm": VM, "actions": ["fly"] }] }), Some(TokenError::Malformed)),
        (json!({ "grants": [{ "vm": VM.to_uppercase(), "actions": ["read"] }] }), Some(TokenError::Malformed)),
        (json!({ "grants": [{ "vm": VM, "actions": ["read"], "only": "x" }] }), Some(TokenError::Malformed)),
        (json!({ "sub": "x".repeat(9000) }), Some(TokenError::TooLong)),
        (json!({ "name": "a claim we do not know" }), None),
    ];
    for (changes, expected) in cases {
        assert_eq!(verifier.verify_token(&issuers.altered(changes.clone()), NOW).err(), expected, "{changes}");
    }
    for name in ["iss", "sub", "aud", "jti", "iat", "exp", "grants"] {
        let refusal = verifier.verify_token(&issuers.altered(json!({ name: null })), NOW);
        assert_eq!(refusal.err(), Some(TokenError::Malformed), "without {name}");
    }
}

#[test]
fn a_token_above_the_ceiling_is_refused_whole() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    let ravada = issuers.signer("ravada", "k1");
    let mint = |grants| ravada.mint_for_agents("alice", grants, 300, NOW).unwrap();
    let delete = mint(vec![grant(VM, &[Action::Read]), grant(VM, &[Action::Delete])]);
    let above = AboveCeiling::Action(Action::Delete);
    assert_eq!(verifier.verify_token(&delete, NOW).err(), Some(TokenError::AboveCeiling(above)));
    let everywhere = mint(vec![grant("*", &[Action::Read])]);
    assert_eq!(verifier.verify_token(&everywhere, NOW).err(), Some(TokenError::AboveCeiling(AboveCeiling::AnyVm)));

    let ops = issuers.signer("ops", "o1");
    let token = ops.mint_for_agents("root", vec![grant("*", &[Action::Admin])], 60, NOW).unwrap();
    let caller = verifier.verify_token(&token, NOW).unwrap();
    assert_eq!(caller.grants()[0].vm, VmSelector::Any);
    assert!(authorize_admin(&caller).is_ok());
}

#[test]
fn the_services_own_issuer_is_bounded_by_more_than_its_ceiling() {
    let issuers = Issuers::new();
    issuers.add_key("own", "s1");
    let own = |list: &[Action]| IssuerConfig {
        service: true,
        any_vm: true,
        ..IssuerConfig::new("own", issuers.jwks("own"), list.iter().copied())
    };
    for action in Action::ALL {
        let loaded = Verifier::load(vec![own(&[Action::Read, action])]);
        match [Action::Read, Action::Create, Action::Delete].contains(&action) {
            true => assert!(loaded.is_ok(), "{action}"),
            false => {
                assert!(matches!(loaded, Err(KeyError::NotForService { .. })), "{action} is a mistake in the file")
            }
        }
    }
    let verifier = Verifier::load(vec![own(&[Action::Read])]).unwrap();
    let signer = issuers.signer("own", "s1");
    let reads = signer.mint_for_agents("api", vec![grant("*", &[Action::Read])], 300, NOW).unwrap();
    assert!(authorize_inventory(&verifier.verify_token(&reads, NOW).unwrap()).is_ok());
    let deletes = signer.mint_for_agents("api", vec![grant("*", &[Action::Delete])], 300, NOW).unwrap();
    let above = TokenError::AboveCeiling(AboveCeiling::Action(Action::Delete));
    assert_eq!(verifier.verify_token(&deletes, NOW).err(), Some(above), "what it could have is not what it has");
}

#[test]
fn a_key_speaks_for_its_own_issuer_only() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    let claims = good_claims();
    let cases = [
        (issuers.sign(&eddsa("o1"), &claims, "o1"), TokenError::UnknownKey),
        (issuers.sign(&eddsa("k1"), &claims, "o1"), TokenError::BadSignature),
        (issuers.sign(&eddsa("k9"), &claims, "k1"), TokenError::UnknownKey),
        (issuers.sign(&Header::new(Algorithm::EdDSA), &claims, "k1"), TokenError::UnknownKey),
    ];
    for (token, expected) in cases {
        assert_eq!(verifier.verify_token(&token, NOW).err(), Some(expected));
    }
    let mut header = eddsa("k1");
    header.crit = Some(vec!["exp".to_owned()]);
    let critical = issuers.sign(&header, &claims, "k1");
    assert_eq!(verifier.verify_token(&critical, NOW).err(), Some(TokenError::Malformed));
}

#[test]
fn the_header_does_not_choose_the_algorithm() {
    let issuers = Issuers::new();
    let verifier = issuers.verifier();
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("k1".to_owned());
    let raw = issuers.public_key("ravada");
    let jwks = fs::read(issuers.jwks("ravada")).unwrap();
    for secret in [raw.as_slice(), jwks.as_slice(), b""] {
        let token = encode(&header, &good_claims(), &EncodingKey::from_secret(secret)).unwrap();
        assert_eq!(verifier.verify_token(&token, NOW).err(), Some(TokenError::WrongAlgorithm));
    }

    let good = issuers.altered(json!({}));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (_, payload) = signed.split_once('.').unwrap();
    // {"alg":"none","typ":"JWT","kid":"k1"}
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIiwia2lkIjoiazEifQ";
    for token in [format!("{none}.{payload}."), format!("{none}.{payload}.{signature}"), format!("{none}.{payload}")] {
        assert_eq!(verifier.verify_token(&token, NOW).err(), Some(TokenError::Malformed));
    }
    assert_eq!(verifier.verify_token(&format!("{signed}."), NOW).err(), Some(TokenError::BadSignature));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_changed_character_spoils_a_token(position in any::<prop::sample::Index>(), letter in "[A-Za-z0-9_.-]") {
        let issuers = Issuers::new();
        let token = issuers.altered(json!({}));
        let at = position.index(token.len());
        let mut changed = token.clone();
        changed.replace_range(at..=at, &letter);
        let verdict = issuers.verifier().verify_token(&changed, NOW);
        prop_assert_eq!(verdict.is_ok(), changed == token);
    }

    #[test]
    fn one_changed_character_spoils_a_credential(position in any::<prop::sample::Index>(), letter in "[A-Za-z0-9_.~-]") {
        let issuers = Issuers::new();
        let credential = format!("{}~{SECRET}", issuers.altered(json!({})));
        let at = position.index(credential.len());
        let mut changed = credential.clone();
        changed.replace_range(at..=at, &letter);
        let verdict = issuers.verifier().verify_credential(&changed, NOW);
        prop_assert_eq!(verdict.is_ok(), changed == credential);
    }

    #[test]
    fn rubbish_is_refused_without_a_panic(text in ".{0,200}", parts in "([A-Za-z0-9_-]{0,40}\\.){2}[A-Za-z0-9_-]{0,40}") {
        let issuers = Issuers::new();
        let verifier = issuers.verifier();
        prop_assert!(verifier.verify_token(&text, NOW).is_err());
        prop_assert!(verifier.verify_token(&parts, NOW).is_err());
        prop_assert!(verifier.verify_credential(&text, NOW).is_err());
        let credential = format!("{parts}~{SECRET}");
        prop_assert!(verifier.verify_credential(&credential, NOW).is_err());
    }
}
