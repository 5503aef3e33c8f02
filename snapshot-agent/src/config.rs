//! The configuration file: TOML, where a key that is not known is an error.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capability::IssuerConfig;
use mtls::{AllowList, TlsFiles};
use serde::Deserialize;
use snapshot_core::ids::HostId;
use snapshot_core::policy::HostPolicy;

use crate::reach::ReachConfig;

/// What an agent is told about itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host's name, as the API knows it.
    pub host: HostId,
    /// Where the API calls.
    pub listen: SocketAddr,
    /// Where Prometheus finds metrics, over plain HTTP; nowhere when absent.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// The collector of traces; none when absent.
    #[serde(default)]
    pub telemetry: Option<traces::Telemetry>,
    /// libvirt's URI.
    #[serde(default = "default_libvirt_uri")]
    pub libvirt_uri: String,
    /// The folder with what the agent has to remember.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// The folder in which libvirt keeps its records of snapshots; derived from the URI when absent.
    #[serde(default)]
    snapshot_dir: Option<PathBuf>,
    /// The folders whose images, with all that is beneath them, may be touched, and whose free space is told to
    /// administrators.
    #[serde(default = "default_image_dirs")]
    pub image_dirs: Vec<PathBuf>,
    /// Folders whose images are read, because images in the folders above lie on them.
    #[serde(default)]
    pub read_dirs: Vec<PathBuf>,
    /// Directories of images that other hosts use as well, each of which has an agent with the same directory here
    /// ([`crate::shared_storage`]).
    #[serde(default)]
    pub shared_dirs: Vec<PathBuf>,
    /// The SPIFFE ids that may call.
    pub peers: AllowList,
    /// Seconds between two comparisons of everything, for what nobody told.
    #[serde(default = "default_scan_seconds")]
    pub scan_seconds: u32,
    /// The most operations at a time.
    #[serde(default = "default_max_operations")]
    pub max_operations: usize,
    /// Seconds without any progress after which an operation is given up: libvirt is away, or the call hangs. Has to be
    /// longer than what libvirt tells nothing of may take, such as writing a guest's whole memory.
    #[serde(default = "default_silence_seconds")]
    pub silence_seconds: u32,
    /// How the log is written.
    #[serde(default)]
    pub log_format: LogFormat,
    /// The agent's certificate and the CA of its callers.
    pub tls: TlsFiles,
    /// Whose tokens count, and for what.
    pub issuers: Vec<IssuerConfig>,
    /// What the host allows.
    #[serde(default)]
    pub policy: HostPolicy,
    /// Whether the agent keeps to what it needs.
    #[serde(default)]
    pub reach: ReachConfig,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn default_libvirt_uri() -> String {
    "qemu:///system".to_owned()
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/ravada-snapshots/agent")
}

fn default_image_dirs() -> Vec<PathBuf> {
    vec![PathBuf::from("/var/lib/libvirt/images")]
}

fn default_scan_seconds() -> u32 {
    10
}

fn default_max_operations() -> usize {
    4
}

fn default_silence_seconds() -> u32 {
    30 * 60
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let failed = |problem: String| ConfigError { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Self::parse(&text).map_err(failed)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if config.max_operations == 0 || config.scan_seconds == 0 || config.silence_seconds == 0 {
            return Err("max_operations, scan_seconds and silence_seconds have to be at least 1".to_owned());
        }
        let dirs = [&config.image_dirs, &config.read_dirs, &config.shared_dirs].into_iter().flatten();
        if let Some(dir) = dirs.into_iter().find(|dir| !dir.is_absolute() || dir.parent().is_none()) {
            return Err(format!(
                "image_dirs, read_dirs and shared_dirs have to be absolute paths, and not all there is: {}",
                dir.display()
            ));
        }
        if config.issuers.is_empty() {
            return Err("without issuers nobody could ask for anything".to_owned());
        }
        config.issuers.iter().try_for_each(IssuerConfig::check).map_err(|error| error.to_string())?;
        Ok(config)
    }

    /// The time between two comparisons of everything.
    pub fn scan_interval(&self) -> Duration {
        Duration::from_secs(self.scan_seconds.into())
    }

    /// How long an operation may make no progress.
    pub fn silence(&self) -> Duration {
        Duration::from_secs(self.silence_seconds.into())
    }

    /// The journal's folder.
    pub fn journal_dir(&self) -> PathBuf {
        self.state_dir.join("operations")
    }

    /// The folder with what of ours is in the images of machines.
    pub fn owned_dir(&self) -> PathBuf {
        self.state_dir.join("owned")
    }

    /// The files that are read again while the agent runs, because they are renewed.
    pub fn read_again(&self) -> Vec<&Path> {
        let tls = [&self.tls.ca, &self.tls.certificate, &self.tls.key].map(PathBuf::as_path);
        let tls = tls.into_iter().chain(self.tls.crl.as_deref());
        tls.chain(self.issuers.iter().map(|issuer| issuer.jwks.as_path())).collect()
    }

    /// The folder in which libvirt keeps its records of snapshots, with a folder for each machine; `None` when it is not
    /// known, as for a libvirt on another host.
    pub fn snapshot_dir(&self) -> Option<PathBuf> {
        self.snapshot_dir.clone().or_else(|| derived_snapshot_dir(&self.libvirt_uri))
    }
}

/// Where libvirt's QEMU driver has them: <https://libvirt.org/drvqemu.html>.
fn derived_snapshot_dir(uri: &str) -> Option<PathBuf> {
    let (scheme, rest) = uri.split_once("://")?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    match (scheme, place) {
        ("qemu", "/embed") => {
            let root = query.split('&').find_map(|parameter| parameter.strip_prefix("root="))?;
            // Escapes are libvirt's business.
            (!root.contains('%')).then(|| Path::new(root).join("lib/qemu/snapshot"))
        }
        ("qemu" | "qemu+unix", "/system") => Some(PathBuf::from("/var/lib/libvirt/qemu/snapshot")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reach::Enforce;

    const SMALLEST: &str = r#"
        host = "alpha"
        listen = "127.0.0.1:0"
        peers = ["spiffe://example.test/snapshot-api"]

        [tls]
        ca = "ca.pem"
        certificate = "agent.pem"
        key = "agent.key"

        [[issuers]]
        issuer = "ravada"
        jwks = "ravada.jwks.json"
        actions = ["create", "delete"]
    "#;

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = Config::parse(SMALLEST).unwrap();
        assert_eq!(config.libvirt_uri, "qemu:///system");
        assert_eq!((config.max_operations, config.scan_interval()), (4, Duration::from_secs(10)));
        assert_eq!(config.policy, HostPolicy::default());
        assert_eq!(config.journal_dir(), Path::new("/var/lib/ravada-snapshots/agent/operations"));
        assert!(!config.issuers[0].any_vm);
    }

    #[test]
    fn everything_can_be_said() {
        let all = format!(
            r#"
            metrics = "127.0.0.1:9100"
            libvirt_uri = "qemu:///embed?root=/tmp/x"
            state_dir = "/tmp/state"
            image_dirs = ["/srv/images"]
            read_dirs = ["/srv/bases"]
            scan_seconds = 3
            max_operations = 2
            silence_seconds = 60
            log_format = "json"
            {SMALLEST}
            [policy]
            stable_paths = false
            max_snapshots_per_vm = 7
            [reach]
            enforce = "required"
            "#
        );
        let config = Config::parse(&all).unwrap();
        assert_eq!((config.policy.stable_paths, config.policy.max_snapshots_per_vm), (false, 7));
        assert_eq!((config.log_format, config.silence()), (LogFormat::Json, Duration::from_secs(60)));
        assert_eq!(config.read_dirs, [Path::new("/srv/bases")]);
        assert_eq!(config.reach.enforce, Enforce::Required);
    }

    #[test]
    fn the_example_says_what_holds_without_it() {
        let config = Config::parse(include_str!("../../examples/agent.toml")).unwrap();
        assert_eq!(config.libvirt_uri, default_libvirt_uri());
        assert_eq!(config.snapshot_dir(), derived_snapshot_dir(&default_libvirt_uri()));
        assert_eq!((&config.state_dir, &config.image_dirs), (&default_state_dir(), &default_image_dirs()));
        assert_eq!((config.read_dirs, config.reach, config.telemetry), (Vec::new(), ReachConfig::default(), None));
        assert_eq!((config.scan_seconds, config.max_operations), (default_scan_seconds(), default_max_operations()));
        assert_eq!(config.silence_seconds, default_silence_seconds());
        assert_eq!(config.policy, HostPolicy::default());
    }

    #[test]
    fn libvirts_folder_follows_from_the_uri_unless_it_is_said() {
        let of = |line: &str| Config::parse(&format!("{line}\n{SMALLEST}")).unwrap().snapshot_dir();
        let system = Some(PathBuf::from("/var/lib/libvirt/qemu/snapshot"));
        assert_eq!(of(""), system);
        for (uri, dir) in [
            ("qemu+unix:///system?socket=/run/x", system),
            ("qemu:///embed?root=/srv/x", Some(PathBuf::from("/srv/x/lib/qemu/snapshot"))),
            ("qemu:///embed?root=/srv/%78", None),
            ("qemu+ssh://elsewhere/system", None),
            ("qemu:///session", None),
            ("test:///default", None),
        ] {
            assert_eq!(of(&format!("libvirt_uri = \"{uri}\"")), dir, "{uri}");
        }
        assert_eq!(of("snapshot_dir = \"/srv/y\""), Some(PathBuf::from("/srv/y")));
    }

    #[test]
    fn mistakes_are_told() {
        for (mistake, word) in [
            (SMALLEST.replace("listen", "lisen"), "lisen"),
            (SMALLEST.replace("alpha", "Alpha!"), "host id"),
            (SMALLEST.replace("\"create\"", "\"destroy\""), "destroy"),
            (SMALLEST.replace("spiffe://example.test/snapshot-api", "*"), "SPIFFE"),
            (format!("max_operations = 0\n{SMALLEST}"), "at least 1"),
            (format!("{SMALLEST}\n[policy]\nallow_everything = true"), "allow_everything"),
            (SMALLEST.replace("\"delete\"]", "\"revert\"]\nservice = true"), "may not have revert"),
            (format!("{SMALLEST}\n[reach]\nenforce = \"sometimes\""), "sometimes"),
            (format!("image_dirs = [\"images\"]\n{SMALLEST}"), "absolute"),
        ] {
            let problem = Config::parse(&mistake).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
    }
}
