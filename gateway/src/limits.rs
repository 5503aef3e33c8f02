//! What is counted, each in all and by address: requests in a second, calls, streams and connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config;
use crate::errors::Refusal;

/// How often addresses that have been quiet are forgotten.
pub(crate) const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Whom a request is counted for, found once when it comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller(IpAddr);

/// All that is counted.
pub(crate) struct Limiter {
    rate: Option<DefaultKeyedRateLimiter<IpAddr>>,
    clock: DefaultClock,
    connections: Shares,
    calls: Shares,
    streams: Shares,
    trusted_proxies: Vec<IpAddr>,
}

impl Limiter {
    pub(crate) fn new(limits: &config::Limits, trusted_proxies: &[IpAddr]) -> Self {
        let rate = NonZeroU32::new(limits.requests_per_second).map(|rate| {
            let burst = NonZeroU32::new(limits.request_burst).unwrap_or(rate);
            RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst))
        });
        Self {
            rate,
            clock: DefaultClock::default(),
            connections: Shares::new(limits.connections, limits.connections_per_address),
            calls: Shares::new(limits.calls, limits.calls_per_address),
            streams: Shares::new(limits.streams, limits.streams_per_address),
            trusted_proxies: trusted_proxies.iter().map(IpAddr::to_canonical).collect(),
        }
    }

    /// A place for a connection, or none when there are enough.
    pub(crate) fn connect(&self, peer: IpAddr) -> Option<Share> {
        self.connections.take(network(peer.to_canonical()))
    }

    /// Counts a request of the caller that it came from.
    pub(crate) fn admit(&self, caller: Caller) -> Result<(), Refusal> {
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.check_key(&caller.0).map_err(|until| Refusal::RateLimited { wait: until.wait_time_from(self.clock.now()) })
    }

    /// A place for a call.
    pub(crate) fn call(&self, caller: Caller) -> Result<Share, Refusal> {
        self.calls.take(caller.0).ok_or(Refusal::Overloaded)
    }

    /// A place for a stream.
    pub(crate) fn stream(&self, caller: Caller) -> Result<Share, Refusal> {
        self.streams.take(caller.0).ok_or(Refusal::Overloaded)
    }

    /// Whom to count a request for: the peer, or, behind a trusted proxy, the address that the proxy saw. Only the last
    /// entry is that proxy's own; those before it are whatever the caller wrote.
    pub(crate) fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> Caller {
        let peer = peer.to_canonical();
        if !self.trusted_proxies.contains(&peer) {
            return Caller(network(peer));
        }
        let last = headers.get_all("x-forwarded-for").iter().next_back();
        let seen = last.and_then(|value| value.to_str().ok()).and_then(|value| value.rsplit(',').next());
        let seen = seen.and_then(|address| address.trim().parse::<IpAddr>().ok());
        Caller(network(seen.map_or(peer, |seen| seen.to_canonical())))
    }

    /// Forgets addresses that have been quiet, so that the table does not grow with every address ever seen.
    pub(crate) fn forget_quiet(&self) {
        if let Some(rate) = &self.rate {
            rate.retain_recent();
            rate.shrink_to_fit();
        }
    }
}

/// One subscriber has a whole /64 of IPv6 addresses, so they count as one.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

/// Places, so many in all and fewer for any one address, so that no address can take them all.
struct Shares {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    places: Arc<Semaphore>,
    per_address: usize,
}

/// A place, given back when dropped.
pub(crate) struct Share {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Shares {
    fn new(places: usize, per_address: usize) -> Self {
        let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        Self { taken: Arc::default(), places, per_address }
    }

    fn take(&self, address: IpAddr) -> Option<Share> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_insert(0);
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(Share { taken: Arc::clone(&self.taken), address, _place: place })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
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
        let limiter = Limiter::new(&limits(), &[]);
        let caller = |text| limiter.caller(ip(text), &HeaderMap::new());
        assert_eq!(limiter.admit(caller("2001:db8::1")), Ok(()));
        assert_eq!(limiter.admit(caller("2001:db8::2")), Ok(()));
        assert!(matches!(limiter.admit(caller("2001:db8::1")), Err(Refusal::RateLimited { .. })));
        assert_eq!(limiter.admit(caller("192.0.2.1")), Ok(()));
    }

    #[test]
    fn only_a_trusted_proxy_tells_another_address() {
        let proxy = ip("127.0.0.1");
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "203.0.113.9, 192.0.2.7".parse().expect("a value"));
        let seen = |limiter: Limiter| limiter.caller(ip("::ffff:127.0.0.1"), &headers);
        assert_eq!(seen(Limiter::new(&limits(), &[proxy])), Caller(ip("192.0.2.7")));
        assert_eq!(seen(Limiter::new(&limits(), &[])), Caller(proxy));
    }

    #[test]
    fn places_are_few_and_come_back() {
        let limiter = Limiter::new(&limits(), &[]);
        let caller = Caller(ip("192.0.2.1"));
        let call = limiter.call(caller).expect("a place");
        assert_eq!(limiter.call(caller).err(), Some(Refusal::Overloaded));
        drop(call);
        assert!(limiter.call(caller).is_ok());

        let places: Vec<_> = (0..3).filter_map(|_| limiter.connect(caller.0)).collect();
        assert_eq!(places.len(), 2);
        let other = limiter.connect(ip("192.0.2.2"));
        assert!(other.is_some() && limiter.connect(ip("192.0.2.3")).is_none());
        drop((places, other));
        assert!(limiter.connections.taken.lock().expect("the table").is_empty());
    }
}
