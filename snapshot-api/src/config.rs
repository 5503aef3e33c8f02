//! The configuration file.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capability::IssuerConfig;
use mtls::{AllowList, SpiffeId, TlsFiles};
use public_port::Network;
use serde::Deserialize;
use snapshot_core::ids::HostId;
use snapshot_core::quota;

use crate::store::Retention;

mod limits;

pub use limits::Limits;

/// Everything the service is told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who may call on the inner listener: the gateway.
    pub peers: AllowList,
    /// `text` or `json`.
    #[serde(default)]
    pub log_format: LogFormat,
    /// The collector of traces; none when absent.
    pub telemetry: Option<traces::Telemetry>,
    /// The proxies in front of the public listener, addresses and networks: their `X-Forwarded-For` or `Forwarded` names the
    /// client that limits count for, and their connections count for `limits.connections_per_proxy`.
    #[serde(default)]
    pub trusted_proxies: Vec<Network>,
    /// Where it listens.
    pub listen: Listen,
    /// Its certificate, for both listeners and towards the agents.
    pub tls: TlsFiles,
    /// The catalogue.
    pub database: Database,
    /// What callers may use.
    #[serde(default)]
    pub limits: Limits,
    /// Whose tokens it takes.
    pub issuers: Vec<IssuerConfig>,
    /// By what key it makes tokens for what it does on its own.
    pub own_issuer: OwnIssuer,
    /// How much may be kept.
    #[serde(default)]
    pub quotas: Quotas,
    /// The hypervisors.
    #[serde(default)]
    pub hosts: Vec<HostConfig>,
}

/// How much each user may keep, on all machines together; 0 is no limit. What a machine may have is its host's policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// The most snapshots.
    pub max_snapshots_per_user: u64,
    /// The most bytes that they take by themselves (`snapshot_core::quota`).
    pub max_bytes_per_user: u64,
}

impl Quotas {
    /// For one user.
    pub fn of_a_user(&self) -> quota::Limits {
        quota::Limits { snapshots: self.max_snapshots_per_user, bytes: self.max_bytes_per_user }
    }
}

/// Where it listens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Mutual TLS, for the gateway.
    pub internal: SocketAddr,
    /// TLS and a token, for grpcurl and scripts; none when absent.
    pub public: Option<SocketAddr>,
    /// Prometheus metrics in plain HTTP; none when absent.
    pub metrics: Option<SocketAddr>,
}

/// The catalogue.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// The SQLite file. Its folder must be on a local disk and writable.
    pub path: PathBuf,
    /// How many days an ended operation is kept, counted while the service runs; at least one.
    #[serde(default = "keep_days")]
    pub keep_operations_days: NonZeroU32,
    /// The most ended operations that are kept. Those of the last day are kept even beyond it.
    #[serde(default = "keep_most")]
    pub keep_operations: u64,
    /// How many days an event of the audit trail is kept, counted while the service runs; 0 is for ever.
    #[serde(default)]
    pub keep_audit_days: u32,
}

fn keep_days() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(89)
}

fn keep_most() -> u64 {
    1_000_000
}

impl Database {
    /// How much is kept of what has ended.
    pub fn retention(&self) -> Retention {
        let keep = Duration::from_secs(24 * 60 * 60) * self.keep_operations_days.get();
        Retention { keep, most: self.keep_operations }
    }

    /// How long events of the audit trail are kept; `None` for ever.
    pub fn audit_retention(&self) -> Option<Duration> {
        (self.keep_audit_days > 0).then(|| Duration::from_secs(24 * 60 * 60) * self.keep_audit_days)
    }
}

/// The service's own issuer, which agents list as one of `[[issuers]]` with `service = true`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnIssuer {
    /// Its name, `iss` in its tokens.
    pub name: String,
    /// The private key: one of its own, not that of the certificate.
    pub key: PathBuf,
    /// The key's name, `kid` in its tokens.
    pub kid: String,
    /// How long its tokens live, in seconds.
    #[serde(default = "own_lifetime")]
    pub lifetime_seconds: u32,
}

fn own_lifetime() -> u32 {
    900
}

impl OwnIssuer {
    /// How long its tokens live.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(self.lifetime_seconds.into())
    }

    /// What is wrong with it beside these issuers of users.
    fn problem(&self, issuers: &[IssuerConfig]) -> Option<String> {
        let longest = u32::try_from(capability::MAX_LIFETIME_SECONDS).unwrap_or(u32::MAX);
        if !(SHORTEST_LIFE..=longest).contains(&self.lifetime_seconds) {
            return Some(format!("own_issuer.lifetime_seconds is from {SHORTEST_LIFE} to {longest}"));
        }
        let own = issuers.iter().find(|issuer| issuer.service || issuer.issuer == self.name)?;
        Some(format!(
            "issuer {:?} is the service's own: agents list it, and nobody calls the service with its tokens",
            own.issuer
        ))
    }
}

/// A shorter life would end before its token has been used.
const SHORTEST_LIFE: u32 = 5;

/// One hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Its name here.
    pub name: HostId,
    /// Where its agent listens, `https://address:port`.
    pub uri: String,
    /// Who its agent must prove to be.
    pub peer: SpiffeId,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {cause}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: Box<toml::de::Error>,
    },
    /// A value, or two that do not go together.
    #[error("{path}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Two hosts have one name.
    #[error("{path}: host {name} occurs twice")]
    DuplicateHost {
        /// The file.
        path: PathBuf,
        /// The name.
        name: HostId,
    },
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        let config: Self = toml::from_str(&text)
            .map_err(|cause| ConfigError::Parse { path: path.to_owned(), cause: Box::new(cause) })?;
        if let Some(problem) = config.own_issuer.problem(&config.issuers) {
            return Err(ConfigError::Invalid { path: path.to_owned(), problem });
        }
        if let Some(problem) = config.limits.problem() {
            return Err(ConfigError::Invalid { path: path.to_owned(), problem });
        }
        let mut names = std::collections::BTreeSet::new();
        for host in &config.hosts {
            if !names.insert(&host.name) {
                return Err(ConfigError::DuplicateHost { path: path.to_owned(), name: host.name.clone() });
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_can_be_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/api.toml");
        let config = Config::load(Path::new(path)).unwrap();
        assert_eq!((config.hosts.len(), config.issuers.len()), (1, 1));
        assert_eq!(config.own_issuer.lifetime_seconds, own_lifetime());
        assert_eq!(config.limits, Limits::default(), "the example says what holds without it");
        assert_eq!((config.quotas, config.database.audit_retention()), (Quotas::default(), None), "the defaults");
        assert_eq!(config.telemetry, None, "nothing goes to a collector unless one is named");
    }

    #[test]
    fn a_value_that_makes_no_sense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.toml");
        let example = include_str!("../../examples/api.toml");
        for (from, to) in [
            ("issuer = \"ravada\"", "issuer = \"snapshot-service\""),
            ("any_vm = false", "service = true"),
            ("lifetime_seconds = 900", "lifetime_seconds = 901"),
            ("lifetime_seconds = 900", "lifetime_seconds = 1"),
            ("receive_seconds = 15", "receive_seconds = 0"),
            ("connection_age_seconds = 3600", "connection_age_seconds = 86401"),
        ] {
            assert!(example.contains(from), "{from}");
            std::fs::write(&path, example.replacen(from, to, 1)).unwrap();
            assert!(matches!(Config::load(&path), Err(ConfigError::Invalid { .. })), "{to}");
        }
    }

    #[test]
    fn a_host_named_twice_and_a_key_that_is_not_known_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.toml");
        let example = include_str!("../../examples/api.toml");
        let host = &example[example.find("[[hosts]]").unwrap()..];
        std::fs::write(&path, format!("{example}\n{host}")).unwrap();
        assert!(matches!(Config::load(&path), Err(ConfigError::DuplicateHost { .. })));
        std::fs::write(&path, format!("surprise = 1\n{example}")).unwrap();
        assert!(matches!(Config::load(&path), Err(ConfigError::Parse { .. })));
    }
}
