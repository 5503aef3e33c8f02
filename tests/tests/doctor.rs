//! The doctors, on a healthy cluster and on six broken ones: each fault is named by the one who can see it, with what to do
//! about it, and nothing else is called broken.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic, and its helpers are part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mtls::dev_ca;
use serde_json::Value;
use tests::lab::{HOST, Lab};
use tests::tools::{binary, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// What a doctor told, and whether it ended as it says it does.
struct Told(Value);

impl Told {
    fn by(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let code = if told["level"] == "FAIL" { 1 } else { 0 };
        assert_eq!(output.status.code(), Some(code), "{told:#}");
        Self(told)
    }

    /// What is broken: the check, which one, what was seen, and what to do.
    fn broken(&self) -> Vec<[String; 4]> {
        let of = |finding: &Value| {
            ["check", "subject", "seen", "remedy"].map(|key| finding[key].as_str().unwrap().to_owned())
        };
        self.0["findings"].as_array().unwrap().iter().filter(|it| it["level"] == "FAIL").map(of).collect()
    }

    /// Fails unless exactly this is broken, and the remedy has this in it.
    fn only(&self, check: &str, seen: &str, remedy: &str) {
        let broken = self.broken();
        let [found] = broken.as_slice() else { panic!("not one fault: {:#}", self.0) };
        assert!(found[0] == check && found[2].contains(seen) && found[3].contains(remedy), "{found:?}");
    }
}

fn of_agent(config: &Path) -> Command {
    doctor("snapshot-agent", config)
}

fn doctor(program: &str, config: &Path) -> Command {
    let mut command = Command::new(binary(program).unwrap());
    command.arg("doctor").arg("--json").arg("--config").arg(config);
    command
}

/// The same with this done first in a mount namespace of its own, which ends with it.
fn after(script: &str, command: &Command) -> Command {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    let mut unshare = Command::new("unshare");
    let script = format!("set -e; {script}; exec \"$@\"");
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]).args(words);
    unshare
}

/// The same by a clock that is wrong.
fn at(offset: &str, command: &Command) -> Command {
    let mut faketime = Command::new("faketime");
    faketime.args(["-f", offset]).arg(command.get_program()).args(command.get_args());
    // Waiting goes by the other clock, which stays.
    faketime.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
    faketime.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    faketime
}

fn of_snapctl(lab: &Lab) -> Command {
    let identity = lab.cluster.identity();
    let mut command = Command::new(binary("snapctl").unwrap());
    command.args(["doctor", "--json"]).env("SNAPCTL_CA", identity.ca()).env("HOME", lab.cluster.folder());
    command.env("SNAPCTL_ENDPOINT", format!("https://localhost:{}", lab.cluster.ports().public));
    command.env("SNAPCTL_TOKEN", identity.admin_token().unwrap());
    command
}

/// A copy of a configuration with something in it replaced.
fn changed(config: &Path, from: &str, to: &str) -> PathBuf {
    let text = fs::read_to_string(config).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    let copy = config.with_extension("changed.toml");
    fs::write(&copy, text.replace(from, to)).unwrap();
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_cluster_has_nothing_broken_and_each_of_six_faults_is_named() {
    let mut lab = Lab::start().unwrap();
    let (agent, api) = (lab.cluster.agent_config(HOST), lab.cluster.api_config());
    let gateway = lab.cluster.folder().join("snapshot-gateway.toml");
    // Until the API has met the host.
    wait_for("a cluster without a fault", SOON, || {
        Ok(Told::by(&mut of_snapctl(&lab)).broken().is_empty().then_some(()))
    })
    .unwrap();
    for (mut command, checks) in [
        (of_agent(&agent), vec!["configuration", "certificate", "chain", "key", "libvirt", "image folder", "space"]),
        (doctor("snapshot-api", &api), vec!["catalogue", "own issuer", "peer", "clock", "revocation list"]),
        (doctor("snapshot-gateway", &gateway), vec!["identity", "CA", "peer", "clock"]),
        (of_snapctl(&lab), vec!["service", "token", "token's life", "clock", "host"]),
    ] {
        let told = Told::by(&mut command);
        assert_eq!(told.broken(), [[""; 4]; 0], "{:#}", told.0);
        let found = told.0["findings"].as_array().unwrap();
        let good = |check: &&str| found.iter().any(|it| it["check"] == **check && it["level"] != "FAIL");
        assert!(checks.iter().all(good), "{checks:?}: {:#}", told.0);
    }

    not_writable_and_almost_full(&lab, &agent);
    wrong_clock(&lab, &api);
    expired_certificate(&lab, &agent);
    let broken = changed(&agent, "[policy]", "[polcy]");
    Told::by(&mut of_agent(&broken)).only("configuration", "polcy", "examples/agent.toml");
    fs::write(api.with_file_name("not-a-catalogue"), vec![7; 9000]).unwrap();
    let broken = changed(&api, "catalogue/snapshots.db", "not-a-catalogue");
    Told::by(&mut doctor("snapshot-api", &broken)).only("catalogue", "cannot be used", "catalogue");

    lab.cluster.host_mut(HOST).unwrap().libvirtd_mut().unwrap().kill().unwrap();
    Told::by(&mut of_agent(&agent)).only("libvirt", "cannot be reached", "systemctl status");
    lab.cluster.host_mut(HOST).unwrap().libvirtd_mut().unwrap().start_again().unwrap();

    wrong_name(&lab, &agent, &api);
    lab.cluster.host_mut(HOST).unwrap().agent().stop().unwrap();
    Told::by(&mut doctor("snapshot-api", &api)).only("peer", "does not answer", "start it there");
}

fn not_writable_and_almost_full(lab: &Lab, agent: &Path) {
    let images = lab.images().unwrap().display().to_string();
    let read_only = format!("mount -t tmpfs -o ro none '{images}'");
    Told::by(&mut after(&read_only, &of_agent(agent))).only("image folder", "read-only", "mount it read-write");
    let full = format!("mount -t tmpfs -o size=200m none '{images}'; fallocate -l 198M '{images}/full'");
    Told::by(&mut after(&full, &of_agent(agent))).only("space", "almost full", "make space");
}

fn wrong_clock(lab: &Lab, api: &Path) {
    let told = Told::by(&mut at("+10m", &doctor("snapshot-api", api)));
    told.only("clock", "behind this machine's", "set the clocks right");
    assert_eq!(told.broken()[0][1], HOST, "whose clock differs");
    Told::by(&mut at("-10m", &of_snapctl(lab))).only("clock", "ahead of this machine's", "set the clocks right");
}

fn expired_certificate(lab: &Lab, agent: &Path) {
    let pki = lab.cluster.identity().folder();
    let short = dev_ca::Leaf {
        file_stem: "short".to_owned(),
        spiffe_path: format!("agent/{HOST}"),
        dns: Vec::new(),
        ip_addrs: Vec::new(),
    };
    dev_ca::issue_for(pki, &short, Duration::from_secs(1)).unwrap();
    let copy = changed(agent, &format!("agent-{HOST}."), "short.");
    let ended = || Ok(Some(Told::by(&mut of_agent(&copy))).filter(|told| !told.broken().is_empty()));
    wait_for("the end of a certificate", SOON, ended).unwrap().only("certificate", "has expired", "pki renew");
}

/// The agent shows a certificate of our CA with another name.
fn wrong_name(lab: &Lab, agent: &Path, api: &Path) {
    let identity = lab.cluster.identity();
    let (own, other) = (identity.agent(HOST), identity.issue("other", "agent/other").unwrap());
    fs::copy(&other.key, &own.key).unwrap();
    fs::copy(&other.certificate, &own.certificate).unwrap();
    let refused = || Ok(Some(Told::by(&mut doctor("snapshot-api", api))).filter(|told| !told.broken().is_empty()));
    let told = wait_for("the other name", SOON, refused).unwrap();
    told.only("peer", "the server is spiffe://test.ravada/agent/other", &format!("--spiffe-path agent/{HOST}"));
    // The agent cannot know what others expect, and says what is unusual.
    let told = Told::by(&mut of_agent(agent));
    let identity = told.0["findings"].as_array().unwrap().iter().find(|it| it["check"] == "identity").unwrap();
    assert!(identity["level"] == "WARN" && identity["remedy"].as_str().unwrap().contains("pki issue"), "{identity}");
}
