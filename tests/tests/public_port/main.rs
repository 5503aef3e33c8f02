//! What strangers may do at the public ports of the API and of the gateway: each attack ends within its bound, and nobody
//! else waits for it. The attacks come from 127.0.0.2; the caller beside them, whose calls are timed, from 127.0.0.1.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test may panic, and its helpers are part of it; what was timed is printed"
)]

mod age;
mod beside;
mod floods;
mod proxies;
mod raw;
mod timeouts;
mod watches;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use tests::cluster::{ALL_ACTIONS, Cluster};
use tests::tools::wait_for;

use crate::raw::Target;

/// Where attacks come from.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// What a busy machine may take beside a time-out.
const SLACK: Duration = Duration::from_secs(2);

/// API and gateway without a host, with these lines for both in `[limits]`, and these at the top of the gateway's file.
fn cluster(limits: &str, top: &str) -> Cluster {
    raise_file_limit();
    let mut cluster = Cluster::start(Vec::new()).unwrap();
    let (api, gateway) = (cluster.api_config(), cluster.folder().join("snapshot-gateway.toml"));
    replace(&api, "[limits]\n", &format!("[limits]\n{limits}\n"));
    let text = std::fs::read_to_string(&gateway).unwrap();
    std::fs::write(&gateway, format!("{top}\n{text}\n[limits]\n{limits}\n")).unwrap();
    cluster.api().stop().unwrap();
    cluster.gateway().stop().unwrap();
    cluster.gateway().start_again().unwrap();
    cluster.start_api_again().unwrap();
    cluster
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{}: no {from}", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Both ends of every connection are here, and children inherit it.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(8192);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most.min(8192).max(limit.current.unwrap_or(0))), ..limit })
        .unwrap();
}

/// The API's public port, with TLS, and the gateway's, in plain text.
fn targets(cluster: &Cluster) -> [Target; 2] {
    let ports = cluster.ports();
    [Target::tls("API", ports.public, &cluster.identity().ca()), Target::plain("gateway", ports.gateway)]
}

fn token(cluster: &Cluster) -> String {
    cluster.identity().token("anna", "*", &ALL_ACTIONS).unwrap()
}

/// The log of the API or the gateway has a line about this limit, at the latest a moment after its effect is seen.
fn was_logged(cluster: &Cluster, target: &Target, limit: &str) {
    let field = format!("limit=\"{limit}\"");
    let line = wait_for(&format!("a line of the {} about {limit}", target.name), SLACK, || {
        let logs = cluster.logs()?;
        let log = logs.iter().find(|(name, _)| name.ends_with(&target.name.to_lowercase()));
        let mut lines = log.into_iter().flat_map(|(_, log)| log.lines());
        let told = lines.find(|line| line.contains("a limit of the public port") && line.contains(&field));
        Ok(told.map(str::to_owned))
    });
    let line = line.unwrap();
    assert!(line.contains("WARN") && line.contains("address=127.0.0.2"), "{line}");
}
