//! What is counted, each in all and by caller: requests in a second, calls and streams. Connections are counted by the port
//! (`public_port`).
//!
//! A caller is a token that the API has taken, or else an address: behind one address there may be a classroom, in which
//! nobody is to go short because of one of them. Tokens that were made up count for the address.

use std::net::IpAddr;
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use limits::{Lingering, Place, Places, Rate, Seen, network};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::config;
use crate::errors::Refusal;

/// The longest life of a token: after that it is no more known than one that was never seen.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);
/// The most tokens that are known; those beyond it count for their address.
const TOKENS: usize = 100_000;

/// The least that a caller who is refused is told to wait. Until there is room for one request it may be no time at all, but
/// whoever is refused has many to make.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// Whom a request is counted for, found once when it comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// A token that the API has taken, by its fingerprint.
    Token(u64),
    /// Whoever else comes from there.
    Address(IpAddr),
}

/// A place of a caller.
pub(crate) type Share = Place<Caller>;

/// All that is counted.
pub(crate) struct Limiter {
    addresses: Rate<Caller>,
    tokens: Rate<Caller>,
    seen: Seen,
    lingering: Lingering,
    calls: Places<Caller>,
    calls_per_token: usize,
    streams: Places<Caller>,
    streams_per_token: usize,
}

impl Limiter {
    pub(crate) fn new(limits: &config::Limits) -> Self {
        Self {
            addresses: Rate::new(limits.requests_per_second, limits.request_burst),
            tokens: Rate::new(limits.token_requests_per_second, limits.token_request_burst),
            seen: Seen::new(TOKEN_LIFE, TOKENS),
            lingering: Lingering::new(limits.calls),
            calls: Places::new(limits.calls, limits.calls_per_address),
            calls_per_token: limits.calls_per_token,
            streams: Places::new(limits.streams, limits.streams_per_address),
            streams_per_token: limits.streams_per_token,
        }
    }

    /// Counts a request of the caller that it came from.
    pub(crate) fn admit(&self, caller: Caller) -> Result<(), Refusal> {
        let rate = match caller {
            Caller::Token(_) => &self.tokens,
            Caller::Address(_) => &self.addresses,
        };
        rate.admit(&caller).map_err(|wait| Refusal::RateLimited { wait: wait.max(LEAST_WAIT) })
    }

    /// Holds a refusal back for a moment, so that a caller who asks on and on is slowed down.
    pub(crate) async fn linger(&self, refusal: &Refusal) {
        if let Refusal::RateLimited { wait } = refusal {
            self.lingering.linger(*wait).await;
        }
    }

    /// A place for a call.
    pub(crate) fn call(&self, caller: Caller) -> Result<Share, Refusal> {
        place(&self.calls, caller, self.calls_per_token)
    }

    /// A place for a stream.
    pub(crate) fn stream(&self, caller: Caller) -> Result<Share, Refusal> {
        place(&self.streams, caller, self.streams_per_token)
    }

    /// Whom to count a request for: its token, if the API has taken it before, or else the client's address.
    pub(crate) fn caller(&self, client: IpAddr, headers: &HeaderMap) -> Caller {
        match self.token(headers).filter(|token| self.seen.is_good(*token)) {
            Some(token) => Caller::Token(token),
            None => Caller::Address(network(client)),
        }
    }

    /// The fingerprint of a request's token.
    pub(crate) fn token(&self, headers: &HeaderMap) -> Option<u64> {
        headers.get(AUTHORIZATION).map(|token| self.seen.fingerprint(token.as_bytes()))
    }

    /// The API has answered a call with this token: `None` for success. What it can say before it has looked at the token tells
    /// nothing.
    pub(crate) fn answered(&self, token: u64, refusal: Option<&Status>) {
        match refusal.map(Status::code) {
            None | Some(Code::NotFound | Code::PermissionDenied | Code::FailedPrecondition | Code::Aborted) => {
                self.seen.found(token, true);
            }
            // Of a user who asks too often every token is to be known, or a new one would be at the cost of the address.
            Some(Code::ResourceExhausted) => {
                let info = refusal.and_then(StatusExt::get_details_error_info);
                if info.is_some_and(|info| info.reason == "RATE_LIMITED") {
                    self.seen.found(token, true);
                }
            }
            Some(Code::Unauthenticated) => self.seen.found(token, false),
            Some(_) => {}
        }
    }

    /// Forgets callers that have been quiet, so that nothing grows with everybody ever seen.
    pub(crate) fn forget_quiet(&self) {
        self.addresses.forget_quiet();
        self.tokens.forget_quiet();
        self.seen.forget_old();
    }
}

fn place(places: &Places<Caller>, caller: Caller, per_token: usize) -> Result<Share, Refusal> {
    let place = match caller {
        Caller::Token(_) => places.take_of(caller, per_token),
        Caller::Address(_) => places.take(caller),
    };
    place.ok_or(Refusal::Overloaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> config::Limits {
        config::Limits {
            connections: 3,
            connections_per_address: 2,
            calls: 1,
            requests_per_second: 1,
            request_burst: 2,
            ..config::Limits::default()
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_has_its_own_share_of_requests() {
        let limiter = Limiter::new(&limits());
        let caller = |text| limiter.caller(ip(text), &HeaderMap::new());
        assert_eq!(limiter.admit(caller("2001:db8::1")), Ok(()));
        assert_eq!(limiter.admit(caller("2001:db8::2")), Ok(()));
        assert!(matches!(limiter.admit(caller("2001:db8::1")), Err(Refusal::RateLimited { .. })));
        assert_eq!(limiter.admit(caller("192.0.2.1")), Ok(()));
    }

    #[test]
    fn a_token_that_the_api_took_is_counted_apart_from_its_address() {
        let limits = config::Limits { token_requests_per_second: 1, token_request_burst: 2, ..limits() };
        let limiter = Limiter::new(&limits);
        let with = |token: &str| HeaderMap::from_iter([(AUTHORIZATION, token.parse().expect("a value"))]);
        let (address, good, other) = (ip("192.0.2.1"), with("Bearer good"), with("Bearer other"));
        assert_eq!(limiter.caller(address, &good), Caller::Address(address), "not known yet");
        for headers in [&good, &other] {
            limiter.answered(limiter.token(headers).expect("a token"), None);
        }
        let caller = limiter.caller(address, &good);
        assert_eq!(caller, limiter.caller(ip("192.0.2.2"), &good), "wherever it comes from");
        assert!(limiter.admit(caller).is_ok() && limiter.admit(caller).is_ok());
        assert!(matches!(limiter.admit(caller), Err(Refusal::RateLimited { .. })));
        assert_eq!(limiter.admit(limiter.caller(address, &other)), Ok(()), "one that asks too much harms no other");

        for made_up in 0..3 {
            let caller = limiter.caller(address, &with(&format!("Bearer {made_up}")));
            assert_eq!(limiter.admit(caller).is_ok(), made_up < 2, "tokens that were made up have one share");
        }
        limiter.answered(limiter.token(&good).expect("a token"), Some(&Status::unauthenticated("it has ended")));
        assert_eq!(limiter.caller(address, &good), Caller::Address(address));
        limiter.answered(limiter.token(&good).expect("a token"), Some(&Status::unavailable("nobody has looked")));
        assert_eq!(limiter.caller(address, &good), Caller::Address(address));
    }

    #[test]
    fn places_are_few_and_come_back() {
        let limiter = Limiter::new(&limits());
        let address = ip("192.0.2.1");
        let caller = Caller::Address(address);
        let call = limiter.call(caller).expect("a place");
        assert_eq!(limiter.call(caller).err(), Some(Refusal::Overloaded));
        drop(call);
        assert!(limiter.call(caller).is_ok());
    }
}
