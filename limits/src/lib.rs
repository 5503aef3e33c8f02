//! What callers may use, counted in memory: rates, places, and which tokens have been seen to be good.
//!
//! The gateway counts by address and token, the API by user. Neither knows what the other does; they share how it is counted.
//! All that is kept for a caller is forgotten when they have been quiet.

mod linger;
mod places;
mod rate;
mod seen;

pub use linger::Lingering;
pub use places::{Place, Places};
pub use rate::Rate;
pub use seen::Seen;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// How often callers that have been quiet should be forgotten.
pub const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Whom an address is counted for. One subscriber has a whole /64 of IPv6 addresses, so they count as one.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}
