//! Tokens of the service's own issuer: for what it does that no user asked for.
//!
//! An agent believes no certificate alone. To read a host, and to follow operations whose caller's token may have ended, the
//! service shows a token that may read everything, and nothing else. It is minted when it is needed, shared by all hosts, and
//! replaced when two thirds of its life are over, by the monotonic clock. One that an agent refused is forgotten: it may have
//! been minted while the wall clock was wrong. Each is bound to a secret that nobody has: a host that received one cannot use it
//! at the API (`docs/adr/0035`).

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use capability::{KeyError, Signer};
use snapshot_core::authority::{Action, Grant, VmSelector};
use snapshot_core::{Error, Reason};
use tokio::time::Instant;

use crate::clock::Clock;

/// Whom the tokens are for: what stands in agents' logs.
pub const SUBJECT: &str = "snapshot-api";

/// Mints and keeps them.
pub struct OwnTokens {
    signer: Signer,
    lifetime: Duration,
    clock: Clock,
    current: Mutex<Option<OwnToken>>,
}

/// One of them.
#[derive(Clone)]
pub struct OwnToken {
    text: String,
    renew: Instant,
}

impl OwnToken {
    /// As it goes into a request.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// When what was begun with it is to be gone on with by the next.
    pub fn renew(&self) -> Instant {
        self.renew
    }
}

impl fmt::Debug for OwnTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnTokens").field("signer", &self.signer).finish_non_exhaustive()
    }
}

impl OwnTokens {
    /// With the private key in this file, which the agents know as `kid` of `issuer`. A lifetime that no token may have is an
    /// error at the first token; the configuration has checked it.
    pub fn load(key: &Path, kid: &str, issuer: &str, lifetime: Duration, clock: Clock) -> Result<Self, KeyError> {
        let signer = Signer::load(key, kid, issuer)?;
        Ok(Self { signer, lifetime, clock, current: Mutex::default() })
    }

    /// A token that may read every machine, with at least a third of its life left.
    pub fn reading(&self) -> Result<OwnToken, Error> {
        let mut current = self.current();
        if let Some(token) = current.as_ref().filter(|token| Instant::now() < token.renew) {
            return Ok(token.clone());
        }
        let grant = Grant { vm: VmSelector::Any, actions: BTreeSet::from([Action::Read]) };
        let seconds = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let text = self.signer.mint_for_agents(SUBJECT, vec![grant], seconds, self.clock.now_s()).map_err(|error| {
            tracing::error!(%error, "the service's own token could not be made");
            Error::new(Reason::Internal, "the service cannot make its own token")
        })?;
        let token = OwnToken { text, renew: Instant::now() + self.lifetime * 2 / 3 };
        *current = Some(token.clone());
        Ok(token)
    }

    /// An agent did not take it.
    pub fn refused(&self, token: &OwnToken) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|now| now.text == token.text) {
            *current = None;
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<OwnToken>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use capability::{IssuerConfig, TokenError, Verifier, generate_issuer_key};
    use snapshot_core::authority::{authorize, authorize_inventory};
    use tempfile::TempDir;

    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    /// With a key of its own.
    pub(crate) fn some(folder: &TempDir, clock: Clock) -> OwnTokens {
        let (key, jwks) = (folder.path().join("own.key"), folder.path().join("own.jwks.json"));
        generate_issuer_key(&key, &jwks, "k").unwrap();
        OwnTokens::load(&key, "k", "own", Duration::from_secs(300), clock).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_is_kept_for_two_thirds_of_its_life_and_opens_nothing_but_reading() {
        let folder = TempDir::new().unwrap();
        let tokens = some(&folder, Clock::from_fn(|| NOW));
        let first = tokens.reading().unwrap();
        assert_eq!((first.renew() - Instant::now()).as_secs(), 200);
        tokio::time::advance(Duration::from_secs(199)).await;
        assert_eq!(tokens.reading().unwrap().as_str(), first.as_str());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_ne!(tokens.reading().unwrap().as_str(), first.as_str());

        let every = IssuerConfig::new("own", folder.path().join("own.jwks.json"), Action::OF_SERVICE);
        let verifier = Verifier::load(vec![IssuerConfig { service: true, any_vm: true, ..every }]).unwrap();
        let caller = verifier.verify_token(first.as_str(), NOW / 1000).unwrap();
        assert_eq!(caller.actor().to_string(), "own/snapshot-api");
        assert!(authorize_inventory(&caller).is_ok());
        let vm = "0191f7a0-0000-7000-8000-00000000000a".parse().unwrap();
        for action in Action::ALL {
            assert_eq!(authorize(&caller, vm, action).is_ok(), action == Action::Read, "{action}");
        }
    }

    /// Even an API that is configured, by mistake, to take tokens of this issuer.
    #[tokio::test]
    async fn no_api_takes_one_whatever_its_configuration() {
        let folder = TempDir::new().unwrap();
        let tokens = some(&folder, Clock::from_fn(|| NOW));
        let token = tokens.reading().unwrap();
        let issuer = IssuerConfig::new("own", folder.path().join("own.jwks.json"), [Action::Read]);
        let verifier = Verifier::load(vec![IssuerConfig { any_vm: true, ..issuer }]).unwrap();
        assert!(verifier.verify_token(token.as_str(), NOW / 1000).is_ok(), "it is good for agents");
        let guessed = "A".repeat(43);
        for credential in
            [token.as_str().to_owned(), format!("{}~", token.as_str()), format!("{}~{guessed}", token.as_str())]
        {
            let refused = verifier.verify_credential(&credential, NOW / 1000);
            assert_eq!(refused.err(), Some(TokenError::Unconfirmed), "{credential}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_minted_by_a_wrong_clock_is_replaced_once_it_was_refused() {
        let folder = TempDir::new().unwrap();
        let wrong = Arc::new(AtomicI64::new(3_600_000));
        let by = wrong.clone();
        let tokens = some(&folder, Clock::from_fn(move || NOW + by.load(Ordering::Relaxed)));
        let early = tokens.reading().unwrap();
        wrong.store(0, Ordering::Relaxed);
        assert_eq!(tokens.reading().unwrap().as_str(), early.as_str());
        tokens.refused(&early);
        let next = tokens.reading().unwrap();
        assert_ne!(next.as_str(), early.as_str());
        tokens.refused(&early);
        assert_eq!(tokens.reading().unwrap().as_str(), next.as_str(), "a late refusal is of the old one");
    }
}
