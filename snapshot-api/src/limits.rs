//! What one user may use, so that nobody has to wait for another's programs.
//!
//! A user is an issuer and a subject, whatever tokens they have. What is counted is in `[limits]`. A refusal is the one that
//! the gateway gives, and is held back for a moment (`limits::Lingering`). Callers without a token that was taken before are
//! counted by address, where there is one: at the public listener (`stranger`).

mod stranger;

use std::net::IpAddr;
use std::time::Duration;

use limits::{Lingering, Place, Places, Rate, Seen};
use snapshot_core::authority::Actor;
use snapshot_core::{Error, Reason};
use tokio::sync::Semaphore;

use crate::config;

pub use stranger::Strangers;

/// The least that a caller who is refused is told to wait.
const WAIT: Duration = Duration::from_secs(1);
/// The most refusals that are held back.
const LINGERING: usize = 4096;
/// A token's longest life, and the most that are known.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);
const TOKENS: usize = 100_000;

/// Issuer and subject.
type User = (String, String);

/// A place of a user, for as long as this is kept.
pub type UserPlace = Place<User>;

/// All that is counted.
pub struct Limits {
    users: Rate<User>,
    calls: Places<User>,
    watches: Places<User>,
    user_operations_per_host: usize,
    addresses: Rate<IpAddr>,
    seen: Seen,
    lingering: Lingering,
}

/// Nothing is limited: for tests of something else.
impl Default for Limits {
    fn default() -> Self {
        Self::new(&config::Limits {
            user_requests_per_second: 0,
            user_calls: 0,
            user_watches: 0,
            user_operations_per_host: 0,
            address_requests_per_second: 0,
            ..config::Limits::default()
        })
    }
}

/// 0 is no limit.
fn most(limit: usize) -> usize {
    if limit == 0 { Semaphore::MAX_PERMITS } else { limit }
}

impl Limits {
    /// Counts by these limits.
    pub fn new(limits: &config::Limits) -> Self {
        Self {
            users: Rate::new(limits.user_requests_per_second, limits.user_request_burst),
            calls: Places::new(Semaphore::MAX_PERMITS, most(limits.user_calls)),
            watches: Places::new(Semaphore::MAX_PERMITS, most(limits.user_watches)),
            user_operations_per_host: most(limits.user_operations_per_host),
            addresses: Rate::new(limits.address_requests_per_second, limits.address_request_burst),
            seen: Seen::new(TOKEN_LIFE, TOKENS),
            lingering: Lingering::new(LINGERING),
        }
    }

    /// Counts a call of a user, and finds a place for it.
    pub fn call(&self, actor: &Actor) -> Result<UserPlace, Error> {
        let user = user(actor);
        self.users.admit(&user).map_err(|wait| limited("too many requests of this user", wait))?;
        self.calls.take(user).ok_or_else(|| limited("too many calls of this user at a time", WAIT))
    }

    /// A place for a watch.
    pub fn watch(&self, actor: &Actor) -> Result<UserPlace, Error> {
        self.watches.take(user(actor)).ok_or_else(|| limited("too many watches of this user at a time", WAIT))
    }

    /// The most operations that one user has on one host at a time.
    pub fn operations_per_host(&self) -> usize {
        self.user_operations_per_host
    }

    /// Whether the token in a header was taken is known from now on.
    pub fn found(&self, token: &[u8], good: bool) {
        self.seen.found(self.seen.fingerprint(token), good);
    }

    /// Holds a refusal back for a moment, so that a caller who asks on and on is slowed down.
    pub async fn linger(&self, error: &Error) {
        let wait = error.metadata().get("retry_after_ms").and_then(|wait| wait.parse().ok());
        if let (Reason::RateLimited, Some(wait)) = (error.reason(), wait) {
            self.lingering.linger(Duration::from_millis(wait)).await;
        }
    }

    /// Forgets callers that have been quiet, until this is dropped.
    pub async fn forget(&self) {
        loop {
            tokio::time::sleep(limits::FORGET_EVERY).await;
            self.users.forget_quiet();
            self.addresses.forget_quiet();
            self.seen.forget_old();
        }
    }
}

fn user(actor: &Actor) -> User {
    (actor.issuer.clone(), actor.subject.clone())
}

fn limited(what: &str, wait: Duration) -> Error {
    // Until there is room for one may be no time at all, and a user who is refused has many programs asking: each is told to
    // wait as long as where asking again helps elsewhere. Rounded up, so that whoever does is not refused for it.
    let wait = u64::try_from(wait.max(WAIT).as_millis()).unwrap_or(u64::MAX).saturating_add(1);
    Error::new(Reason::RateLimited, what).with("retry_after_ms", wait.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(subject: &str, token_id: &str) -> Actor {
        Actor { issuer: "ravada".to_owned(), subject: subject.to_owned(), token_id: token_id.to_owned() }
    }

    fn limits() -> Limits {
        Limits::new(&config::Limits {
            user_requests_per_second: 1,
            user_request_burst: 3,
            user_calls: 2,
            user_watches: 1,
            ..config::Limits::default()
        })
    }

    #[test]
    fn a_user_is_counted_whatever_token_they_have_and_no_other() {
        let limits = limits();
        for token in ["1", "2", "3"] {
            assert!(limits.call(&actor("anna", token)).is_ok());
        }
        let refusal = limits.call(&actor("anna", "4")).unwrap_err();
        assert_eq!(refusal.reason(), Reason::RateLimited);
        let wait: u64 = refusal.metadata()["retry_after_ms"].parse().unwrap();
        assert!((1..=1001).contains(&wait), "{wait}");
        assert!(limits.call(&actor("berta", "5")).is_ok());
        // Issuer and subject are not run together.
        let other = Actor { issuer: "ravada/anna".to_owned(), ..actor("", "6") };
        assert!(limits.call(&other).is_ok());
    }

    #[test]
    fn places_are_by_user_and_come_back() {
        let limits = limits();
        let (anna, berta) = (actor("anna", "1"), actor("berta", "2"));
        let held = [limits.call(&anna).unwrap(), limits.call(&anna).unwrap()];
        assert_eq!(limits.call(&anna).unwrap_err().metadata()["retry_after_ms"], "1001");
        assert!(limits.call(&berta).is_ok());
        drop(held);
        let watch = limits.watch(&anna).unwrap();
        assert_eq!(limits.watch(&anna).unwrap_err().reason(), Reason::RateLimited);
        assert!(limits.watch(&berta).is_ok());
        drop(watch);
        assert!(limits.watch(&anna).is_ok());
    }

    #[test]
    fn nothing_is_limited_by_zero() {
        let none = Limits::new(&config::Limits {
            user_requests_per_second: 0,
            user_calls: 0,
            user_watches: 0,
            ..config::Limits::default()
        });
        let places: Vec<_> = (0..1000).map(|_| none.call(&actor("anna", "1")).unwrap()).collect();
        let watches: Vec<_> = (0..1000).map(|_| none.watch(&actor("anna", "1")).unwrap()).collect();
        assert_eq!(places.len() + watches.len(), 2000);
    }
}
