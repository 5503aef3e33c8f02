//! The credential of a caller: a token, and the secret that the token is bound to.
//!
//! Callers send `<JWT>~<secret>` to the API. The token's `cnf` claim has the SHA-256 of the secret, so the API can tell that
//! whoever sends the credential was given the secret. The API sends the token alone to agents: what an agent receives is
//! refused at the API (`docs/adr/0035`).

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use snapshot_core::authority::Confirmation;

use crate::{KeyError, TokenError};

/// The character between the token and the secret. It is allowed in a bearer credential (`b68token` of RFC 6750, section 2.1) and
/// is in no JWT and no base64url.
pub const SEPARATOR: char = '~';

/// The least and the most random bytes of a secret.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

/// The random bytes of a secret that is made here.
const NEW_SECRET_BYTES: usize = 32;

/// A token and the secret that came with it. Whether the token is bound to this secret is not checked yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credential<'a> {
    token: &'a str,
    secret: &'a str,
}

/// Neither the token nor the secret is shown.
impl fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").finish_non_exhaustive()
    }
}

impl<'a> Credential<'a> {
    /// Takes `<JWT>~<secret>` apart. [`TokenError::Unconfirmed`] without a secret, with several separators, and with a secret
    /// that is not 16 to 64 bytes in base64url without padding. The token itself is not checked.
    pub fn parse(credential: &'a str) -> Result<Self, TokenError> {
        // A second separator would be in the secret, where it is no base64url.
        let (token, secret) = credential.split_once(SEPARATOR).ok_or(TokenError::Unconfirmed)?;
        let bytes = URL_SAFE_NO_PAD.decode(secret).map_err(|_| TokenError::Unconfirmed)?;
        if SECRET_BYTES.contains(&bytes.len()) { Ok(Self { token, secret }) } else { Err(TokenError::Unconfirmed) }
    }

    /// The token alone, as it is sent to agents.
    pub fn token(&self) -> &'a str {
        self.token
    }

    /// Whether the token's confirmation claim is for this secret. It takes the same time whatever differs.
    pub(crate) fn is_confirmed_by(&self, confirmation: &Confirmation) -> bool {
        let expected = hash(self.secret);
        verify_slices_are_equal(expected.as_bytes(), confirmation.secret_sha256.as_bytes()).is_ok()
    }
}

/// A new secret, and the confirmation claim for it.
pub(crate) fn new_secret() -> Result<(String, Confirmation), KeyError> {
    let mut bytes = [0; NEW_SECRET_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Crypto)?;
    let secret = URL_SAFE_NO_PAD.encode(bytes);
    let confirmation = Confirmation { secret_sha256: hash(&secret) };
    Ok((secret, confirmation))
}

/// Whether a confirmation claim has the form of a hash. One of another form would be for no secret.
pub(crate) fn is_hash(confirmation: &Confirmation) -> bool {
    URL_SAFE_NO_PAD.decode(&confirmation.secret_sha256).is_ok_and(|bytes| bytes.len() == SHA256.output_len())
}

/// Of the secret's characters, as RFC 7636 (section 4.6, `S256`) hashes a code verifier.
fn hash(secret: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hash_is_that_of_rfc_7636() {
        // Appendix B.
        let secret = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(hash(secret), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn what_is_no_credential_is_refused() {
        let secret = "A".repeat(22);
        assert_eq!(Credential::parse(&format!("a.b.c~{secret}")).unwrap().token(), "a.b.c");
        for wrong in [
            String::new(),
            "a.b.c".to_owned(),
            "a.b.c~".to_owned(),
            format!("a.b.c~~{secret}"),
            format!("a.b.c~{secret}~"),
            format!("a.b.c~{secret}~{secret}"),
            format!("a.b.c~{secret}="),
            format!("a.b.c~ {secret}"),
            format!("a.b.c.{secret}"),
            // 15 bytes, and 65.
            format!("a.b.c~{}", "A".repeat(20)),
            format!("a.b.c~{}", "A".repeat(87)),
            format!("a.b.c~{}", "+".repeat(22)),
            // Bits that are no part of a byte.
            format!("a.b.c~{}B", "A".repeat(21)),
        ] {
            assert_eq!(Credential::parse(&wrong), Err(TokenError::Unconfirmed), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_new_and_not_shown() {
        let (first, second) = (new_secret().unwrap(), new_secret().unwrap());
        assert_ne!(first.0, second.0);
        assert!(is_hash(&first.1) && !is_hash(&Confirmation { secret_sha256: String::new() }));
        let text = format!("a.b.c~{}", first.0);
        let credential = Credential::parse(&text).unwrap();
        assert!(credential.is_confirmed_by(&first.1) && !credential.is_confirmed_by(&second.1));
        assert_eq!(format!("{credential:?}"), "Credential { .. }");
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_or_refused(text in ".{0,120}") {
            if let Ok(Credential { token, secret }) = Credential::parse(&text) {
                prop_assert_eq!(format!("{token}~{secret}"), text);
            }
        }

        #[test]
        fn a_token_and_a_secret_come_back(token in "[A-Za-z0-9_.-]{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let secret = URL_SAFE_NO_PAD.encode(&bytes);
            let text = format!("{token}~{secret}");
            let parsed = Credential::parse(&text);
            prop_assert_eq!(parsed.is_ok(), SECRET_BYTES.contains(&bytes.len()));
            if let Ok(credential) = parsed {
                prop_assert_eq!(credential.token(), token);
                let own = Confirmation { secret_sha256: hash(&secret) };
                let another = Confirmation { secret_sha256: secret };
                prop_assert!(credential.is_confirmed_by(&own) && !credential.is_confirmed_by(&another));
            }
        }
    }
}
