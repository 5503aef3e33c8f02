//! The configuration files of a cluster's processes.

use std::path::Path;

use super::Ports;
use super::identity::{Identity, Leaf};

/// What an agent's configuration needs to know.
pub(super) struct Agent<'a> {
    pub(super) name: &'a str,
    pub(super) port: u16,
    pub(super) metrics: u16,
    pub(super) uri: &'a str,
    pub(super) state: &'a Path,
    pub(super) images: &'a Path,
    pub(super) shared: Option<&'a Path>,
    pub(super) snapshots: &'a Path,
    pub(super) scan_seconds: u32,
    pub(super) policy: &'a str,
    pub(super) defaults: bool,
}

pub(super) fn agent(identity: &Identity, agent: &Agent<'_>) -> String {
    let Agent { name, port, metrics, uri, scan_seconds, .. } = agent;
    let (state, images, snapshots) = (agent.state.display(), agent.images.display(), agent.snapshots.display());
    let shared = agent.shared.map(|directory| format!("shared_dirs = [\"{}\"]\n", directory.display()));
    let shared = shared.unwrap_or_default();
    let peer = identity.spiffe("snapshot-api");
    let tls = tls("tls", identity, &identity.agent(name));
    let issuers = format!("{}{}", issuers(identity), own_issuer_of_api(identity));
    // What most tests are about is saved and restored with the guest's RAM, which tells more than its disks alone.
    let live = if agent.defaults || agent.policy.contains("live_snapshots") { "" } else { "live_snapshots = false\n" };
    let policy = format!("{live}{}", agent.policy);
    format!(
        r#"host = "{name}"
listen = "127.0.0.1:{port}"
metrics = "127.0.0.1:{metrics}"
libvirt_uri = "{uri}"
state_dir = "{state}"
image_dirs = ["{images}"]
{shared}snapshot_dir = "{snapshots}"
scan_seconds = {scan_seconds}
peers = ["{peer}"]
{tls}{issuers}
[policy]
{policy}
"#
    )
}

pub(super) fn api(identity: &Identity, ports: &Ports, database: &Path, agents: &[(&str, u16)]) -> String {
    let Ports { internal, public, api_metrics, .. } = ports;
    let peer = identity.spiffe("gateway");
    let tls = tls("tls", identity, &identity.api());
    let issuers = format!("{}{}", issuers(identity), own_issuer(identity));
    let database = database.display();
    let hosts: String = agents
        .iter()
        .map(|(name, port)| {
            let peer = identity.spiffe(&format!("agent/{name}"));
            format!("\n[[hosts]]\nname = \"{name}\"\nuri = \"https://127.0.0.1:{port}\"\npeer = \"{peer}\"\n")
        })
        .collect();
    format!(
        r#"peers = ["{peer}"]

[listen]
internal = "127.0.0.1:{internal}"
public = "127.0.0.1:{public}"
metrics = "127.0.0.1:{api_metrics}"
{tls}
[database]
path = "{database}"

# One user does everything here. What this bounds has tests of its own (e2e_limits).
[limits]
user_operations_per_host = 0
{issuers}{hosts}"#
    )
}

pub(super) fn gateway(identity: &Identity, ports: &Ports) -> String {
    let Ports { internal, gateway, gateway_metrics, .. } = ports;
    let peer = identity.spiffe("snapshot-api");
    let tls = tls("api.tls", identity, &identity.gateway());
    format!(
        r#"listen = "127.0.0.1:{gateway}"
metrics = "127.0.0.1:{gateway_metrics}"

[api]
uri = "https://127.0.0.1:{internal}"
peer = "{peer}"
{tls}"#
    )
}

/// For any of them.
pub(super) fn telemetry(collector: Option<u16>) -> String {
    collector.map(|port| format!("\n[telemetry]\nendpoint = \"http://127.0.0.1:{port}\"\n")).unwrap_or_default()
}

fn tls(table: &str, identity: &Identity, leaf: &Leaf) -> String {
    let (ca, crl, certificate, key) = (identity.ca(), identity.crl(), &leaf.certificate, &leaf.key);
    format!(
        "\n[{table}]\nca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\ncrl = \"{}\"\n",
        ca.display(),
        certificate.display(),
        key.display(),
        crl.display()
    )
}

/// A test does with one token what a person does not do in the life of one.
const USES: &str = "destructive_uses = 1000000\n";

/// As an agent lists it.
fn own_issuer_of_api(identity: &Identity) -> String {
    let (name, _, jwks) = identity.own_issuer();
    let jwks = jwks.display();
    let actions = r#"actions = ["read", "create", "delete"]"#;
    format!("\n[[issuers]]\nissuer = \"{name}\"\njwks = \"{jwks}\"\n{actions}\nany_vm = true\nservice = true\n")
}

/// As the API has it.
fn own_issuer(identity: &Identity) -> String {
    let (name, key, _) = identity.own_issuer();
    format!("\n[own_issuer]\nname = \"{name}\"\nkey = \"{}\"\nkid = \"{}\"\n", key.display(), identity.kid())
}

fn issuers(identity: &Identity) -> String {
    let listed = |actions: &[&str]| actions.iter().map(|it| format!("\"{it}\"")).collect::<Vec<_>>().join(", ");
    let (careful, _, jwks_of_careful) = identity.careful_issuer();
    let little: Vec<_> = identity.actions().iter().copied().filter(|it| !["admin", "force"].contains(it)).collect();
    format!(
        "\n[[issuers]]\nissuer = \"{}\"\njwks = \"{}\"\nactions = [{}]\nany_vm = true\n{USES}\
         \n[[issuers]]\nissuer = \"{careful}\"\njwks = \"{}\"\nactions = [{}]\ndestructive_uses = 1\n",
        identity.issuer(),
        identity.jwks().display(),
        listed(identity.actions()),
        jwks_of_careful.display(),
        listed(&little),
    )
}
