//! SPIFFE ids: what they look like, where a certificate has its own, and lists of them.
//!
//! The rules are those of the SPIFFE-ID and X509-SVID standards, at their strictest: one spelling for one id, so that
//! comparing bytes is comparing identities.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The most bytes of an id (SPIFFE-ID, section 2.3).
const MAX_BYTES: usize = 2048;

/// `spiffe://<trust domain>/<path>`, with a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SpiffeId(String);

/// Text that is not a SPIFFE id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a SPIFFE id (spiffe://<trust domain>/<path>)")]
pub struct ParseSpiffeError {
    /// The offending text, cut to 120 characters.
    pub text: String,
}

impl SpiffeId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        self.split().0
    }

    /// The path, without its leading slash.
    pub fn path(&self) -> &str {
        self.split().1
    }

    fn split(&self) -> (&str, &str) {
        split(&self.0).unwrap_or_default()
    }
}

fn split(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix("spiffe://")?.split_once('/')
}

/// Lower-case letters, digits, `.`, `-` and `_`: no port, no user, nothing to be decoded.
pub(crate) fn is_trust_domain(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
    (1..=255).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_path(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    text.split('/')
        .all(|segment| !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(allowed))
}

impl FromStr for SpiffeId {
    type Err = ParseSpiffeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match split(text) {
            Some((domain, path)) if text.len() <= MAX_BYTES && is_trust_domain(domain) && is_path(path) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(ParseSpiffeError { text: text.chars().take(120).collect() }),
        }
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = ParseSpiffeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.0
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a certificate says its bearer is. Whether to believe it is the verification's business: those handed out with a
/// connection have been verified.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIdentity(SpiffeId);

/// Why a certificate carries no usable identity, or not the one asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate.
    #[error("the certificate cannot be parsed")]
    Unparsable,
    /// X509-SVID, section 2: exactly one URI SAN.
    #[error("the certificate has {0} URI names, not one")]
    UriCount(usize),
    /// The URI SAN is not a SPIFFE id.
    #[error("the certificate's URI name: {0}")]
    NotSpiffe(#[from] ParseSpiffeError),
    /// A client that the listener does not admit.
    #[error("{0} is not on the allow-list")]
    NotAllowed(SpiffeId),
    /// A server other than the one that was called.
    #[error("the server is {found}, not {expected}")]
    NotExpected {
        /// Who answered.
        found: SpiffeId,
        /// Who was called.
        expected: SpiffeId,
    },
}

impl PeerIdentity {
    /// Reads the one URI SAN of a leaf certificate. Nothing is verified here.
    pub fn from_certificate(leaf: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Unparsable)?;
        if !rest.is_empty() {
            return Err(IdentityError::Unparsable);
        }
        let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unparsable)?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let uris: Vec<&str> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris.as_slice() {
            [uri] => Ok(Self(uri.parse()?)),
            _ => Err(IdentityError::UriCount(uris.len())),
        }
    }

    /// The id.
    pub fn id(&self) -> &SpiffeId {
        &self.0
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The ids that are admitted, exactly as written: no patterns. An empty list admits nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllowList(BTreeSet<SpiffeId>);

impl AllowList {
    /// Whether this peer is admitted.
    pub fn admits(&self, peer: &PeerIdentity) -> bool {
        self.0.contains(&peer.0)
    }
}

impl FromIterator<SpiffeId> for AllowList {
    fn from_iter<I: IntoIterator<Item = SpiffeId>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id: SpiffeId = "spiffe://example.test/agent/host-1".parse().unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("example.test", "agent/host-1"));
        for other in [
            "",
            "example.test/agent",
            "spiffe://example.test",
            "spiffe://example.test/",
            "spiffe:///agent",
            "SPIFFE://example.test/agent",
            "spiffe://Example.test/agent",
            "spiffe://example.test:443/agent",
            "spiffe://user@example.test/agent",
            "spiffe://example.test//agent",
            "spiffe://example.test/agent/",
            "spiffe://example.test/agent/../api",
            "spiffe://example.test/./agent",
            "spiffe://example.test/%61gent",
            "spiffe://example.test/agent?x=1",
            "spiffe://example.test/agent#x",
            "spiffe://example.test/agént",
            "https://example.test/agent",
        ] {
            assert!(other.parse::<SpiffeId>().is_err(), "{other}");
        }
        assert!(format!("spiffe://example.test/{}", "a".repeat(2048)).parse::<SpiffeId>().is_err());
    }

    #[test]
    fn an_allow_list_is_read_from_configuration() {
        #[derive(Deserialize)]
        struct Config {
            allow: AllowList,
        }
        let config: Config = toml::from_str(r#"allow = ["spiffe://example.test/api"]"#).unwrap();
        assert!(config.allow.admits(&PeerIdentity("spiffe://example.test/api".parse().unwrap())));
        assert!(!config.allow.admits(&PeerIdentity("spiffe://example.test/api2".parse().unwrap())));
        assert!(toml::from_str::<Config>(r#"allow = ["spiffe://example.test/*"]"#).is_err());
    }
}
