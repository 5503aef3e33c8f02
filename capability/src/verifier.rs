//! From a token to a caller.
//!
//! 1. The header gives the `kid`; its `alg` only serves to refuse. The payload's `iss`, not trusted yet, selects whose
//!    key set the `kid` is looked up in, so no issuer's key can speak for another, nor can equal `kid`s collide.
//! 2. The signature is checked with that key, as EdDSA because the key is an Ed25519 key.
//! 3. The token must be bound to a secret. The API compares the secret in the credential with the `cnf` claim before it evaluates any
//!    other claim; an agent refuses a credential that contains a secret (`docs/adr/0035`).
//! 4. Audience, identity, lifetime and times are checked against the clock given.
//! 5. The grants are held against the issuer's ceiling; above it the whole token is refused.
//!
//! Key sets are files. At most once a second a verification looks whether they changed. A new file that cannot be used
//! is logged and the keys from before stay; one that lacks a `kid` revokes it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jsonwebtoken::errors::{Error as JwtError, ErrorKind};
use jsonwebtoken::{Algorithm, Validation, dangerous, decode, decode_header};
use serde::Deserialize;
use snapshot_core::authority::{AUDIENCE, Action, Caller, Ceiling, Claims, Confirmation};

use crate::credential::{Credential, SEPARATOR, is_hash};
use crate::jwks::{self, KeySet};
use crate::{CLOCK_SKEW_SECONDS, KeyError, MAX_LIFETIME_SECONDS, MAX_TOKEN_BYTES, TokenError};

const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// The most bytes of a `sub` or `jti`: both are stored with every operation.
const MAX_IDENTITY_BYTES: usize = 256;

/// One issuer, as in the configuration:
/// `{ issuer = "ravada", jwks = "/etc/…/ravada.jwks.json", actions = ["read", "create"], any_vm = false }`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// The `iss` of its tokens.
    pub issuer: String,
    /// The file with its public keys.
    pub jwks: PathBuf,
    /// The actions it may grant at all.
    pub actions: BTreeSet<Action>,
    /// Whether it may grant on `*`. No by default.
    #[serde(default)]
    pub any_vm: bool,
    /// Whether it is the API's own, by which it reads the hosts and does what no user asked for. Its tokens open less than
    /// their grants say ([`snapshot_core::authority::Ceiling::service`]), and more than that may not be configured. No by default.
    #[serde(default)]
    pub service: bool,
    /// How many destructive operations (revert, delete, purge) one token may begin on a host: an agent counts, the API does not.
    #[serde(default = "default_destructive_uses")]
    pub destructive_uses: NonZeroU32,
}

/// Enough for a person with one token at a page, and an end for who has stolen it.
fn default_destructive_uses() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(15)
}

impl IssuerConfig {
    /// An issuer whose tokens may do this to machines that they name, and nothing that has to be said besides.
    pub fn new(issuer: &str, jwks: PathBuf, actions: impl IntoIterator<Item = Action>) -> Self {
        Self {
            issuer: issuer.to_owned(),
            jwks,
            actions: actions.into_iter().collect(),
            any_vm: false,
            service: false,
            destructive_uses: default_destructive_uses(),
        }
    }

    /// Refuses what may not be configured: the service's own issuer with a right that is for users.
    pub fn check(&self) -> Result<(), KeyError> {
        let above = |action: &&Action| self.service && !Action::OF_SERVICE.contains(*action);
        match self.actions.iter().find(above) {
            None => Ok(()),
            Some(action) => Err(KeyError::NotForService { issuer: self.issuer.clone(), action: *action }),
        }
    }

    fn ceiling(&self) -> Ceiling {
        Ceiling {
            actions: self.actions.clone(),
            any_vm: self.any_vm,
            service: self.service,
            destructive_uses: self.destructive_uses.get(),
        }
    }
}

/// Verifies tokens of the configured issuers.
#[derive(Debug)]
pub struct Verifier {
    issuers: HashMap<String, Issuer>,
    next_look: Mutex<Instant>,
}

#[derive(Debug)]
struct Issuer {
    path: PathBuf,
    ceiling: Ceiling,
    keys: ArcSwap<KeySet>,
    /// What the last look found, good or bad, so that one change is acted upon and logged once.
    last: Mutex<Found>,
}

/// A file's content, or why it could not be read.
type Found = Result<Vec<u8>, io::ErrorKind>;

/// The one claim that is read before the signature is checked.
#[derive(Deserialize)]
struct Unverified {
    iss: String,
}

impl Verifier {
    /// Reads all key sets. At this point a broken one is an error.
    pub fn load(configs: Vec<IssuerConfig>) -> Result<Self, KeyError> {
        let mut issuers = HashMap::with_capacity(configs.len());
        for config in configs {
            config.check()?;
            let bytes = jwks::read(&config.jwks)?;
            let keys = jwks::parse(&config.jwks, &bytes)?;
            let issuer = Issuer {
                ceiling: config.ceiling(),
                path: config.jwks,
                keys: ArcSwap::from_pointee(keys),
                last: Mutex::new(Ok(bytes)),
            };
            if issuers.insert(config.issuer.clone(), issuer).is_some() {
                return Err(KeyError::DuplicateIssuer(config.issuer));
            }
        }
        Ok(Self { issuers, next_look: Mutex::new(Instant::now() + RELOAD_INTERVAL) })
    }

    /// The caller behind `<JWT>~<secret>`, at this time (seconds since the Unix epoch), and the token without the secret. For the
    /// API: whoever knows the token alone is refused.
    pub fn verify_credential(&self, credential: &str, now_unix: i64) -> Result<(Caller, String), TokenError> {
        if credential.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let credential = Credential::parse(credential)?;
        let caller = self.verify(credential.token(), now_unix, |cnf| credential.is_confirmed_by(cnf))?;
        Ok((caller, credential.token().to_owned()))
    }

    /// The caller behind a token that comes without its secret, at this time (seconds since the Unix epoch). For agents, whose
    /// callers show who they are by a certificate: a credential that has a secret is refused.
    pub fn verify_token(&self, token: &str, now_unix: i64) -> Result<Caller, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        if token.contains(SEPARATOR) {
            return Err(TokenError::UnexpectedSecret);
        }
        self.verify(token, now_unix, |_| true)
    }

    fn verify(
        &self,
        token: &str,
        now_unix: i64,
        is_confirmed: impl FnOnce(&Confirmation) -> bool,
    ) -> Result<Caller, TokenError> {
        self.reload_when_due();
        let header = decode_header(token).map_err(|error| refusal(&error))?;
        if header.alg != Algorithm::EdDSA {
            return Err(TokenError::WrongAlgorithm);
        }
        if header.crit.is_some() {
            // RFC 7515, section 4.1.11: what must be understood and is not, is refused.
            return Err(TokenError::Malformed);
        }
        let Unverified { iss } = dangerous::insecure_decode_claims(token).map_err(|error| refusal(&error))?;
        let issuer = self.issuers.get(&iss).ok_or(TokenError::UnknownIssuer)?;
        let keys = issuer.keys.load();
        let key = header.kid.and_then(|kid| keys.get(&kid)).ok_or(TokenError::UnknownKey)?;
        let claims = decode::<Claims>(token, key, &signature_only()).map_err(|error| refusal(&error))?.claims;
        let confirmation = claims.cnf.as_ref().filter(|cnf| is_hash(cnf)).ok_or(TokenError::Unbound)?;
        if !is_confirmed(confirmation) {
            return Err(TokenError::Unconfirmed);
        }
        check_claims(&claims, now_unix)?;
        Caller::from_verified(claims, &issuer.ceiling).map_err(TokenError::AboveCeiling)
    }

    /// Takes over key sets that changed on disk, now. Verifications do this by themselves, at most once a second.
    pub fn reload(&self) {
        for (name, issuer) in &self.issuers {
            issuer.reload(name);
        }
    }

    fn reload_when_due(&self) {
        // Whoever finds the lock taken goes on with the keys there are: the holder is looking.
        let mut next_look = match self.next_look.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let now = Instant::now();
        if now >= *next_look {
            *next_look = now + RELOAD_INTERVAL;
            self.reload();
        }
    }
}

impl Issuer {
    /// Compares contents and not times: the file is small, and a clock's granularity or a preserved mtime cannot hide a
    /// change.
    fn reload(&self, name: &str) {
        let read = jwks::read(&self.path);
        let found = match &read {
            Ok(bytes) => Ok(bytes.clone()),
            Err(KeyError::Io { source, .. }) => Err(source.kind()),
            Err(_) => Err(io::ErrorKind::InvalidData),
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == found {
            return;
        }
        *last = found;
        match read.and_then(|bytes| jwks::parse(&self.path, &bytes)) {
            Ok(keys) => {
                tracing::info!(issuer = name, keys = keys.len(), "key set reloaded");
                self.keys.store(Arc::new(keys));
            }
            Err(error) => tracing::error!(issuer = name, %error, "new key set not usable, the keys from before stay"),
        }
    }
}

/// The library's checks of claims read the system's clock and take lists and fractions; ours are in [`check_claims`].
fn signature_only() -> Validation {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn check_claims(claims: &Claims, now_unix: i64) -> Result<(), TokenError> {
    if claims.aud != AUDIENCE {
        return Err(TokenError::WrongAudience);
    }
    let acceptable =
        |text: &str| !text.is_empty() && text.len() <= MAX_IDENTITY_BYTES && !text.chars().any(char::is_control);
    if !acceptable(&claims.sub) || !acceptable(&claims.jti) {
        return Err(TokenError::BadIdentity);
    }
    if !(1..=MAX_LIFETIME_SECONDS).contains(&claims.exp.saturating_sub(claims.iat)) {
        return Err(TokenError::BadLifetime);
    }
    let latest_start = claims.iat.max(claims.nbf.unwrap_or(i64::MIN));
    if latest_start > now_unix.saturating_add(CLOCK_SKEW_SECONDS) {
        return Err(TokenError::NotYetValid);
    }
    if claims.exp <= now_unix.saturating_sub(CLOCK_SKEW_SECONDS) {
        return Err(TokenError::Expired);
    }
    Ok(())
}

fn refusal(error: &JwtError) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidSignature => TokenError::BadSignature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            TokenError::WrongAlgorithm
        }
        _ => TokenError::Malformed,
    }
}
