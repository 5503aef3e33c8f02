//! The PKI of a cluster, and how an operator replaces what is in it: with `snapshot-api pki` in a folder beside, and then by
//! renaming files into place, because services read them at any moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use capability::Signer;
use serde_json::{Value, json};
use snapshot_core::authority::{Action, Grant, VmSelector};
use tests::cluster::{Cluster, Leaf};
use tests::tools::{binary, run};

const SERVICES: [(&str, &str); 3] =
    [("agent-alpha", "agent/alpha"), ("snapshot-api", "snapshot-api"), ("gateway", "gateway")];
const NEXT_KID: &str = "test-2";

pub(crate) struct Pki {
    /// What the services read.
    live: PathBuf,
    /// The old CA with its leaves, as they are made.
    old: PathBuf,
    /// The new CA.
    next: PathBuf,
    issuer: &'static str,
}

impl Pki {
    pub(crate) fn new(cluster: &Cluster) -> Result<Self> {
        let live = cluster.identity().folder().to_owned();
        let (old, next) = (cluster.folder().join("pki-old"), cluster.folder().join("pki-next"));
        fs::create_dir(&old)?;
        for file in fs::read_dir(&live)? {
            let file = file?;
            fs::copy(file.path(), old.join(file.file_name()))?;
        }
        let dir = next.display().to_string();
        api(&["pki", "create", "--dir", &dir, "--trust-domain", "test.ravada"])?;
        for (name, path) in SERVICES {
            let whom = ["--name", name, "--spiffe-path", path, "--dns", "localhost", "--ip", "127.0.0.1"];
            api(&[["pki", "issue", "--dir", &dir].as_slice(), whom.as_slice()].concat())?;
        }
        let issuer = cluster.identity().issuer();
        api(&["token", "create-key", "--dir", &dir, "--issuer", issuer, "--kid", NEXT_KID])?;
        let pki = Self { live, old, next, issuer };
        fs::write(pki.bundle(), pki.both("ca.pem")?)?;
        Ok(pki)
    }

    pub(crate) fn services(&self) -> [&'static str; 3] {
        SERVICES.map(|(name, _)| name)
    }

    /// Both CAs: what callers from outside trust all the time.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.old.join("bundle.pem")
    }

    pub(crate) fn renew(&self, service: &str) -> Result<()> {
        api(&["pki", "renew", "--dir", &self.old.display().to_string(), "--name", service]).map(drop)
    }

    pub(crate) fn put(&self, file: &str) -> Result<()> {
        self.place(file, &fs::read(self.old.join(file))?)
    }

    pub(crate) fn put_of_next(&self, service: &str) -> Result<()> {
        for file in [format!("{service}.key"), format!("{service}.pem")] {
            self.place(&file, &fs::read(self.next.join(&file))?)?;
        }
        Ok(())
    }

    /// A certificate that nobody uses is revoked.
    pub(crate) fn revoke_somebody(&self) -> Result<()> {
        let dir = self.old.display().to_string();
        api(&["pki", "issue", "--dir", &dir, "--name", "stolen", "--spiffe-path", "agent/stolen"])?;
        let certificate = self.old.join("stolen.pem").display().to_string();
        api(&["pki", "revoke", "--dir", &dir, "--certificate", &certificate])?;
        self.put("crl.pem")
    }

    pub(crate) fn trust_both(&self) -> Result<()> {
        self.place("ca.pem", &self.both("ca.pem")?)?;
        self.place("crl.pem", &self.both("crl.pem")?)
    }

    pub(crate) fn trust_next_only(&self) -> Result<()> {
        self.place("ca.pem", &fs::read(self.next.join("ca.pem"))?)?;
        self.place("crl.pem", &fs::read(self.next.join("crl.pem"))?)
    }

    /// A certificate that the old CA signed.
    pub(crate) fn old_leaf(&self, service: &str) -> Leaf {
        let file = |extension| self.old.join(format!("{service}.{extension}"));
        Leaf { certificate: file("pem"), key: file("key") }
    }

    pub(crate) fn publish_both_keys(&self) -> Result<()> {
        let mut all: Vec<Value> = Vec::new();
        for dir in [&self.old, &self.next] {
            let set: Value = serde_json::from_slice(&fs::read(dir.join(self.jwks()))?)?;
            all.extend(set["keys"].as_array().context("a key set")?.clone());
        }
        self.place(&self.jwks(), json!({ "keys": all }).to_string().as_bytes())
    }

    pub(crate) fn publish_next_key_only(&self) -> Result<()> {
        self.place(&self.jwks(), &fs::read(self.next.join(self.jwks()))?)
    }

    /// A token by the new key, for everything.
    pub(crate) fn next_token(&self, subject: &str) -> Result<String> {
        let signer = Signer::load(&self.next.join(format!("{}.key", self.issuer)), NEXT_KID, self.issuer)?;
        let grant = Grant { vm: VmSelector::Any, actions: Action::ALL.iter().copied().collect() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(signer.mint(subject, vec![grant], 900, i64::try_from(now)?)?)
    }

    fn jwks(&self) -> String {
        format!("{}.jwks.json", self.issuer)
    }

    fn both(&self, file: &str) -> Result<Vec<u8>> {
        Ok([fs::read(self.old.join(file))?, fs::read(self.next.join(file))?].concat())
    }

    fn place(&self, file: &str, bytes: &[u8]) -> Result<()> {
        let draft = self.live.join(format!("{file}.draft"));
        fs::write(&draft, bytes)?;
        Ok(fs::rename(draft, self.live.join(file))?)
    }
}

/// Whether the listener turns a client with this certificate away, by what curl says of it.
pub(crate) fn is_refused(port: u16, leaf: &Leaf) -> bool {
    let url = format!("https://127.0.0.1:{port}/");
    let output = Command::new("curl")
        .args(["-sSk", "--http2", "--max-time", "5", &url])
        .args([Path::new("--cert"), &leaf.certificate, Path::new("--key"), &leaf.key])
        .output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("unknown ca"))
}

fn api(arguments: &[&str]) -> Result<String> {
    run(Command::new(binary("snapshot-api")?).args(arguments))
}
