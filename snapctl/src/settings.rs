//! Where the service is and who asks: from flags, the environment, and a file.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::arguments::Common;
use crate::failure::Failure;

/// Where Debian keeps the CAs that a system trusts.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
const SYSTEM_FILE: &str = "/etc/ravada-snapshots/snapctl.toml";
/// A token is a few hundred bytes; the service takes 8 KiB.
const MAX_TOKEN_BYTES: u64 = 16 << 10;

/// What was decided.
#[derive(Debug)]
pub struct Settings {
    /// `https://host:port`, or `http://` to this machine.
    pub endpoint: String,
    /// The CA certificates, PEM.
    pub ca: PathBuf,
    /// The token.
    pub token: Token,
}

/// A bearer token. It is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// The file.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    endpoint: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

impl Settings {
    /// Flags first, then the environment, then the file.
    pub fn gather(flags: &Common) -> Result<Self, Failure> {
        Self::from(flags, |name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(flags: &Common, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let file = file(flags, &variable)?;
        let endpoint = flags.endpoint.clone().or_else(|| variable("SNAPCTL_ENDPOINT")).or(file.endpoint);
        let endpoint = endpoint.ok_or_else(|| {
            Failure::usage("the service's address is not known: give --endpoint, or set it in ~/.config/snapctl.toml")
        })?;
        let ca = flags.ca.clone().or_else(|| variable("SNAPCTL_CA").map(PathBuf::from)).or(file.ca);
        let token = match (&flags.token_file, variable("SNAPCTL_TOKEN")) {
            (None, Some(token)) => token,
            (path, _) => {
                let path = path.clone().or_else(|| variable("SNAPCTL_TOKEN_FILE").map(PathBuf::from));
                read_token(path.or(file.token_file).as_deref())?
            }
        };
        let token = Token(token.trim().to_owned());
        Ok(Self { endpoint, ca: ca.unwrap_or_else(|| SYSTEM_CA.into()), token })
    }
}

fn file(flags: &Common, variable: &impl Fn(&str) -> Option<String>) -> Result<File, Failure> {
    let asked = flags.config.clone().or_else(|| variable("SNAPCTL_CONFIG").map(PathBuf::from));
    if let Some(path) = asked {
        return read(&path);
    }
    let folder = variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let folder = folder.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")));
    let own = folder.map(|folder| folder.join("snapctl.toml"));
    let found = own.into_iter().chain([PathBuf::from(SYSTEM_FILE)]).find(|path| path.exists());
    found.map_or_else(|| Ok(File::default()), |path| read(&path))
}

fn read(path: &Path) -> Result<File, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    toml::from_str(&text).map_err(|error| unreadable(path, &error))
}

fn read_token(path: Option<&Path>) -> Result<String, Failure> {
    let Some(path) = path else {
        return Err(Failure::NoToken);
    };
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_TOKEN_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| unreadable(path, &error))?;
    Ok(text)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn flags_go_before_the_environment_and_that_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (config, token) = (folder.path().join("c.toml"), folder.path().join("token"));
        let lines = format!("endpoint = \"https://file:1\"\nca = \"/file\"\ntoken_file = {token:?}\n");
        std::fs::write(&config, lines).unwrap();
        std::fs::write(&token, "of the file\n").unwrap();
        let flags = Common { config: Some(config), ..Common::default() };

        let settings = Settings::from(&flags, |_| None).unwrap();
        assert_eq!((settings.endpoint.as_str(), settings.ca.as_path()), ("https://file:1", Path::new("/file")));
        assert_eq!(settings.token.0, "of the file");

        let variables = BTreeMap::from([("SNAPCTL_ENDPOINT", "https://variable:1"), ("SNAPCTL_TOKEN", "variable")]);
        let of = |name: &str| variables.get(name).map(|value| (*value).to_owned());
        let settings = Settings::from(&flags, of).unwrap();
        assert_eq!((settings.endpoint.as_str(), settings.token.0.as_str()), ("https://variable:1", "variable"));

        let flags = Common { endpoint: Some("https://flag:1".into()), token_file: Some(token), ..flags };
        let settings = Settings::from(&flags, of).unwrap();
        assert_eq!((settings.endpoint.as_str(), settings.token.0.as_str()), ("https://flag:1", "of the file"));
        assert!(!format!("{settings:?}").contains("of the file"), "a token is not shown");
    }

    #[test]
    fn what_is_missing_or_misspelt_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let empty = |name: &str| (name == "HOME").then(|| folder.path().display().to_string());
        let failure = Settings::from(&Common::default(), empty).unwrap_err();
        assert_eq!(failure.exit_code(), 2, "{failure}");
        let flags = Common { endpoint: Some("https://x".into()), ..Common::default() };
        assert!(matches!(Settings::from(&flags, empty), Err(Failure::NoToken)));
        let config = folder.path().join("c.toml");
        std::fs::write(&config, "endpiont = \"https://x\"").unwrap();
        let failure = Settings::from(&Common { config: Some(config), ..flags }, empty).unwrap_err();
        assert!(failure.to_string().contains("endpiont"), "{failure}");
    }

    #[test]
    fn the_example_can_be_read() {
        let file = read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/snapctl.toml"))).unwrap();
        assert!(file.endpoint.is_some() && file.ca.is_some() && file.token_file.is_some());
    }
}
