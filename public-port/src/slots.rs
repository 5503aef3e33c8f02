//! Slots for connections and handshakes, by address, so that no address takes another one's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use limits::{Place, Places, network};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Settings;
use crate::TrustedProxies;
use crate::notices::{Limit, Notices};

/// Handshakes of one address at a time; further ones wait for these. They are counted from the first byte on, so a
/// connection that says nothing takes no slot.
const HANDSHAKES_PER_ADDRESS: usize = 16;
/// Connections beyond a limit that are still answered, in all and from one address.
const SPARE: usize = 1024;
const SPARE_PER_ADDRESS: usize = 128;

/// The slot of a connection, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The limit that the connection is beyond; `None` for one within all limits.
    pub(crate) over_limit: Option<Limit>,
    _place: Place<IpAddr>,
}

/// The slots of a port.
#[derive(Debug)]
pub(crate) struct Slots {
    connections: Places<IpAddr>,
    spare: Places<IpAddr>,
    handshakes: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
    most: usize,
    per_address: usize,
    per_proxy: usize,
    proxies: TrustedProxies,
    notices: Arc<Notices>,
}

impl Slots {
    pub(crate) fn new(settings: &Settings, notices: Arc<Notices>) -> Self {
        Self {
            connections: Places::new(settings.connections, settings.connections_per_address),
            spare: Places::new(SPARE, SPARE_PER_ADDRESS),
            handshakes: Mutex::default(),
            most: settings.connections,
            per_address: settings.connections_per_address,
            per_proxy: settings.connections_per_proxy,
            proxies: settings.trusted_proxies.clone(),
            notices,
        }
    }

    /// A slot for a connection from this address, a spare one where a limit is reached, or none.
    pub(crate) fn connect(&self, peer: IpAddr) -> Option<Slot> {
        let (each, limit) = if self.proxies.contains(peer) {
            (self.per_proxy, Limit::ConnectionsPerProxy)
        } else {
            (self.per_address, Limit::ConnectionsPerAddress)
        };
        let address = network(peer);
        if let Some(place) = self.connections.take_of(address, each) {
            return Some(Slot { over_limit: None, _place: place });
        }
        let own = self.connections.taken(&address) >= each;
        let (limit, most) = if own { (limit, each) } else { (Limit::Connections, self.most) };
        self.notices.reached(limit, peer, most.try_into().unwrap_or(u64::MAX));
        self.spare.take(address).map(|place| Slot { over_limit: Some(limit), _place: place })
    }

    /// Waits for the slot of a handshake. None is waited for longer than the handshakes before it may take.
    pub(crate) async fn handshake(&self, peer: IpAddr) -> Option<OwnedSemaphorePermit> {
        let slots = {
            let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
            let own = handshakes.entry(network(peer)).or_default();
            own.upgrade().unwrap_or_else(|| {
                let slots = Arc::new(Semaphore::new(HANDSHAKES_PER_ADDRESS));
                *own = Arc::downgrade(&slots);
                slots
            })
        };
        slots.acquire_owned().await.ok()
    }

    /// Forgets addresses that have been quiet.
    pub(crate) fn forget_quiet(&self) {
        let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        handshakes.retain(|_, slots| slots.strong_count() > 0);
        handshakes.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn slots(connections: usize) -> Slots {
        let second = Duration::from_secs(1);
        let settings = Settings {
            handshake: second,
            receive: second,
            idle: second,
            age: second,
            drain: second,
            http1: true,
            streams_per_connection: 1,
            connections,
            connections_per_address: 2,
            connections_per_proxy: 4,
            control_frame_burst: 1,
            control_frames_per_second: 1,
            trusted_proxies: TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()]),
        };
        Slots::new(&settings, Arc::default())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_connection_beyond_a_limit_has_a_spare_slot_and_a_proxy_has_a_limit_of_its_own() {
        let slots = slots(100);
        let limits = |address: &str, count: usize| -> Vec<Option<Slot>> {
            (0..count).map(|_| slots.connect(ip(address))).collect()
        };
        let told = |held: &[Option<Slot>]| {
            let within = held.iter().flatten().filter(|slot| slot.over_limit.is_none()).count();
            (within, held.iter().flatten().count() - within, held.iter().filter(|slot| slot.is_none()).count())
        };
        let held = limits("192.0.2.1", SPARE_PER_ADDRESS + 8);
        assert_eq!(told(&held), (2, SPARE_PER_ADDRESS, 6));
        assert_eq!(held[2].as_ref().unwrap().over_limit, Some(Limit::ConnectionsPerAddress));
        let proxy = limits("10.1.2.3", 5);
        assert_eq!(told(&proxy), (4, 1, 0));
        assert_eq!(proxy[4].as_ref().unwrap().over_limit, Some(Limit::ConnectionsPerProxy));
        assert_eq!(told(&limits("192.0.2.2", 2)), (2, 0, 0), "another address has its own");
        drop(held);
        assert_eq!(told(&limits("192.0.2.1", 2)), (2, 0, 0), "slots come back");
        assert_eq!(slots.connections.callers(), 1);
    }

    #[test]
    fn when_all_slots_are_taken_every_address_still_has_spare_ones() {
        let slots = slots(2);
        let _held = [slots.connect(ip("192.0.2.1")), slots.connect(ip("192.0.2.2"))];
        let slot = slots.connect(ip("192.0.2.3")).unwrap();
        assert_eq!(slot.over_limit, Some(Limit::Connections));
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_of_an_address_wait_for_each_other_and_for_no_others() {
        let slots = slots(100);
        let wait = |address: &'static str| tokio::time::timeout(Duration::from_secs(1), slots.handshake(ip(address)));
        let mut held = Vec::new();
        for _ in 0..HANDSHAKES_PER_ADDRESS {
            held.push(wait("192.0.2.1").await.unwrap());
        }
        assert!(wait("192.0.2.1").await.is_err());
        assert!(wait("192.0.2.2").await.is_ok());
        held.pop();
        assert!(wait("192.0.2.1").await.is_ok());
        drop(held);
        slots.forget_quiet();
        assert!(slots.handshakes.lock().unwrap().is_empty());
    }
}
