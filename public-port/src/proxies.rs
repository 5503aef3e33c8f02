//! Which address a request came from, behind proxies that are trusted to name it.
//!
//! A proxy appends the address of its peer to `X-Forwarded-For` (or `Forwarded`, RFC 7239), so the list is read from its
//! end: the first address that is not a trusted proxy is the client, and whatever stands before it is what the client
//! wrote. A proxy that sets one of the two headers passes the other one on as the client sent it: where both are there
//! and name different clients, neither is believed.

use std::net::IpAddr;

use http::header::{FORWARDED, HeaderMap, HeaderName};

use crate::Network;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies whose headers are believed.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    /// These addresses and networks.
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    /// Whether this is the address of a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The client's address: the peer's, or what a peer that is a trusted proxy names. A header that cannot be read, or
    /// that names trusted proxies alone, leaves the proxy's own address.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.contains(peer) {
            return peer;
        }
        let told = [self.named(headers, X_FORWARDED_FOR, plain), self.named(headers, FORWARDED, forwarded)];
        match told {
            [Named::Client(one), Named::Client(other)] if one == other => one,
            [Named::Client(client), Named::Absent] | [Named::Absent, Named::Client(client)] => client,
            _ => peer,
        }
    }

    fn named(&self, headers: &HeaderMap, name: HeaderName, read: fn(&str) -> Option<IpAddr>) -> Named {
        let mut any = false;
        // Several headers are one list (RFC 9110, 5.3).
        for value in headers.get_all(name).iter().rev() {
            any = true;
            let Ok(text) = value.to_str() else { return Named::Unreadable };
            for element in text.rsplit(',') {
                match read(element.trim()) {
                    None => return Named::Unreadable,
                    Some(address) if self.contains(address) => {}
                    Some(address) => return Named::Client(address.to_canonical()),
                }
            }
        }
        if any { Named::Unreadable } else { Named::Absent }
    }
}

enum Named {
    Absent,
    Unreadable,
    Client(IpAddr),
}

/// An address, or one with a port: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]:4711`.
fn plain(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address = text.parse().ok().or_else(|| text.parse().ok().map(|socket: std::net::SocketAddr| socket.ip()));
    address.or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

/// The `for` of one element of `Forwarded`. An obfuscated or unknown one names nobody.
fn forwarded(element: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in element.split(';') {
        let (name, value) = pair.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("for") {
            if found.is_some() {
                return None;
            }
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
            found = Some(plain(value)?);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies() -> TrustedProxies {
        TrustedProxies::new(["127.0.0.1", "10.0.0.0/8"].map(|text| text.parse().unwrap()).to_vec())
    }

    fn client(headers: &[(&'static str, &str)]) -> String {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| _ = map.append(name, value));
        proxies().client("::ffff:127.0.0.1".parse().unwrap(), &map).to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxy_is_the_client() {
        for (value, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("203.0.113.9, 192.0.2.7", "192.0.2.7"),
            ("203.0.113.9, 192.0.2.7, 10.1.2.3", "192.0.2.7"),
            ("made up, 192.0.2.7", "192.0.2.7"),
            ("192.0.2.7:4711", "192.0.2.7"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            // Not readable, or nobody but proxies.
            ("192.0.2.7, made up", "127.0.0.1"),
            ("192.0.2.7,", "127.0.0.1"),
            ("", "127.0.0.1"),
            ("10.1.2.3", "127.0.0.1"),
            ("192.0.2.7, unknown, 10.1.2.3", "127.0.0.1"),
        ] {
            assert_eq!(client(&[("x-forwarded-for", value)]), expected, "{value}");
        }
        assert_eq!(client(&[]), "127.0.0.1");
        let two = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "192.0.2.7")];
        assert_eq!(client(&two), "192.0.2.7", "the last header is the nearest proxy's");
    }

    #[test]
    fn forwarded_is_read_the_same_way() {
        for (value, expected) in [
            ("for=192.0.2.7", "192.0.2.7"),
            ("for=203.0.113.9, For=192.0.2.7;proto=https;by=10.1.2.3", "192.0.2.7"),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=192.0.2.7, for=10.0.0.1", "192.0.2.7"),
            ("for=_hidden", "127.0.0.1"),
            ("for=unknown", "127.0.0.1"),
            ("proto=https", "127.0.0.1"),
            ("for=192.0.2.7;for=192.0.2.8", "127.0.0.1"),
        ] {
            assert_eq!(client(&[("forwarded", value)]), expected, "{value}");
        }
    }

    #[test]
    fn a_header_that_the_proxy_passed_on_from_the_client_decides_nothing() {
        let agree = [("x-forwarded-for", "192.0.2.7"), ("forwarded", "for=192.0.2.7")];
        assert_eq!(client(&agree), "192.0.2.7");
        let differ = [("x-forwarded-for", "192.0.2.7"), ("forwarded", "for=203.0.113.9")];
        assert_eq!(client(&differ), "127.0.0.1");
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "192.0.2.7".parse().unwrap());
        let stranger: IpAddr = "192.0.2.99".parse().unwrap();
        assert_eq!(proxies().client(stranger, &headers), stranger, "who is no proxy names nobody");
    }
}
