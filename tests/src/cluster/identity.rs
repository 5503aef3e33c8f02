//! Who is who in a cluster: a development CA with a certificate for every process, one issuer of users' tokens, and the API's
//! own. All of it is made by `snapshot-api`'s own subcommands, as an operator would.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use capability::Signer;
use snapshot_core::authority::{Action, Grant, VmSelector};

use crate::scratch::Scratch;
use crate::tools::{binary, run};

/// Everything a token can allow; what earlier services do not know is last.
pub const ALL_ACTIONS: [&str; 8] = ["read", "create", "update", "revert", "delete", "purge", "admin", "force"];

const TRUST_DOMAIN: &str = "test.ravada";
const ISSUER: &str = "ravada";
const KID: &str = "test-1";
/// The API's own.
const OWN_ISSUER: &str = "snapshot-service";
/// One whose tokens are for named machines, and good for one destructive call.
const CAREFUL_ISSUER: &str = "careful";
/// Whom the API's own mints for.
const OWN_SUBJECT: &str = "snapshot-api";
/// The longest that is allowed, so that a token outlives the test that uses it.
const LIFETIME: &str = "900";

/// What an agent receives of a credential: the token, without the secret that it is bound to.
pub fn forwarded(credential: &str) -> &str {
    credential.split_once('~').map_or(credential, |(token, _)| token)
}

/// What of a credential nobody else may know: its token's signature, and its secret.
pub fn signature_and_secret(credential: &str) -> impl Iterator<Item = &str> {
    credential.rsplit('.').next().into_iter().flat_map(|last| last.split('~'))
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM, PKCS#8.
    pub key: PathBuf,
}

/// A cluster's CA and its issuer of tokens.
#[derive(Debug, Default)]
pub struct Identity {
    folder: PathBuf,
    /// What the issuer of users may grant.
    actions: &'static [&'static str],
    /// The tokens that were made.
    tokens: Mutex<Vec<String>>,
}

impl Identity {
    pub(super) fn create(scratch: &Scratch, hosts: &[&str], actions: &'static [&'static str]) -> Result<Self> {
        let identity = Self { folder: scratch.folder("pki")?, actions, ..Self::default() };
        let folder = identity.folder.display().to_string();
        api(&["pki", "create", "--dir", &folder, "--trust-domain", TRUST_DOMAIN])?;
        identity.issue("snapshot-api", "snapshot-api")?;
        identity.issue("gateway", "gateway")?;
        for host in hosts {
            identity.issue(&format!("agent-{host}"), &format!("agent/{host}"))?;
        }
        for issuer in [ISSUER, OWN_ISSUER, CAREFUL_ISSUER] {
            api(&["token", "create-key", "--dir", &folder, "--issuer", issuer, "--kid", KID])?;
        }
        Ok(identity)
    }

    /// Issues one more certificate, for instance for a peer that nobody expects.
    pub fn issue(&self, name: &str, spiffe_path: &str) -> Result<Leaf> {
        let folder = self.folder.display().to_string();
        let whom = ["--name", name, "--spiffe-path", spiffe_path, "--dns", "localhost", "--ip", "127.0.0.1"];
        api(&[["pki", "issue", "--dir", &folder].as_slice(), whom.as_slice()].concat())?;
        Ok(self.leaf(name))
    }

    /// A token for every machine with every action, as an administrator has.
    pub fn admin_token(&self) -> Result<String> {
        self.token("root", "*", self.actions)
    }

    /// What the issuer of users may grant.
    pub(super) fn actions(&self) -> &'static [&'static str] {
        self.actions
    }

    /// A token for one machine (its UUID, or `*` for all) and some actions.
    pub fn token(&self, subject: &str, vm: &str, actions: &[&str]) -> Result<String> {
        self.token_for(subject, vm, actions, LIFETIME)
    }

    /// As [`Identity::token`], living so many seconds.
    pub fn token_for(&self, subject: &str, vm: &str, actions: &[&str], lifetime: &str) -> Result<String> {
        self.mint(ISSUER, subject, vm, actions, lifetime)
    }

    /// A token of the API's own issuer: what a thief of its machine can make.
    pub fn own_token(&self, vm: &str, actions: &[&str]) -> Result<String> {
        self.mint(OWN_ISSUER, OWN_SUBJECT, vm, actions, LIFETIME)
    }

    fn mint(&self, issuer: &str, subject: &str, vm: &str, actions: &[&str], lifetime: &str) -> Result<String> {
        let key = self.folder.join(format!("{issuer}.key")).display().to_string();
        let actions = actions.join(",");
        let who = ["token", "mint", "--key", &key, "--issuer", issuer, "--kid", KID, "--subject", subject];
        let what = ["--vm", vm, "--actions", &actions, "--lifetime", lifetime];
        let token = api(&[who.as_slice(), what.as_slice()].concat())?.trim().to_owned();
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).push(token.clone());
        Ok(token)
    }

    /// A token that was good for everything until a while ago.
    pub fn expired_token(&self) -> Result<String> {
        let signer = Signer::load(&self.folder.join(format!("{ISSUER}.key")), KID, ISSUER)?;
        let hour_ago = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() - 3600;
        let grant = Grant { vm: VmSelector::Any, actions: Action::ALL.iter().copied().collect() };
        Ok(signer.mint("root", vec![grant], 300, i64::try_from(hour_ago)?)?)
    }

    /// The CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The CA's list of what it has revoked.
    pub fn crl(&self) -> PathBuf {
        self.folder.join("crl.pem")
    }

    /// The issuer's private key.
    pub fn issuer_key(&self) -> PathBuf {
        self.folder.join(format!("{ISSUER}.key"))
    }

    /// That key's name.
    pub fn kid(&self) -> &'static str {
        KID
    }

    /// The issuer's public keys.
    pub fn jwks(&self) -> PathBuf {
        self.folder.join(format!("{ISSUER}.jwks.json"))
    }

    /// The issuer's name.
    pub fn issuer(&self) -> &'static str {
        ISSUER
    }

    /// The API's own issuer: its name, its private key, its public keys.
    pub fn own_issuer(&self) -> (&'static str, PathBuf, PathBuf) {
        let file = |extension: &str| self.folder.join(format!("{OWN_ISSUER}.{extension}"));
        (OWN_ISSUER, file("key"), file("jwks.json"))
    }

    /// An issuer that may grant little, and whose tokens are good for one destructive call: its name, key, public keys.
    pub fn careful_issuer(&self) -> (&'static str, PathBuf, PathBuf) {
        let file = |extension: &str| self.folder.join(format!("{CAREFUL_ISSUER}.{extension}"));
        (CAREFUL_ISSUER, file("key"), file("jwks.json"))
    }

    /// A certificate with a peer's own name, of an authority that nobody here trusts.
    pub fn of_another_authority(&self, spiffe_path: &str) -> Result<Leaf> {
        let other = Self { folder: self.folder.join("another-authority"), ..Self::default() };
        std::fs::create_dir(&other.folder)?;
        let folder = other.folder.display().to_string();
        api(&["pki", "create", "--dir", &folder, "--trust-domain", TRUST_DOMAIN])?;
        other.issue("stranger", spiffe_path)
    }

    /// What may be found nowhere but here and in requests: the signatures of tokens, the secrets that they are bound to, and lines
    /// of private keys.
    pub fn secrets(&self) -> Result<Vec<String>> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let mut secrets: Vec<String> =
            tokens.iter().flat_map(|token| signature_and_secret(token)).map(str::to_owned).collect();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|last| last == "key") {
                let text = std::fs::read_to_string(path)?;
                secrets.extend(text.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned));
            }
        }
        secrets.retain(|secret| secret.len() > 20);
        Ok(secrets)
    }

    /// Where everything is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A peer's identity, from its path in the trust domain.
    pub fn spiffe(&self, path: &str) -> String {
        format!("spiffe://{TRUST_DOMAIN}/{path}")
    }

    /// The API's certificate.
    pub fn api(&self) -> Leaf {
        self.leaf("snapshot-api")
    }

    /// The gateway's certificate.
    pub fn gateway(&self) -> Leaf {
        self.leaf("gateway")
    }

    /// The certificate of a host's agent.
    pub fn agent(&self, host: &str) -> Leaf {
        self.leaf(&format!("agent-{host}"))
    }

    fn leaf(&self, name: &str) -> Leaf {
        let file = |extension: &str| self.folder.join(format!("{name}.{extension}"));
        Leaf { certificate: file("pem"), key: file("key") }
    }
}

fn api(arguments: &[&str]) -> Result<String> {
    run(Command::new(binary("snapshot-api")?).args(arguments))
}
