//! Tokens and private keys are found nowhere but where they belong: not in a log at its most talkative, not in an error, a
//! metric, an argument, the environment, the catalogue, a journal or a core dump.
//!
//! (What the other tests' servers log is looked through as well, when a lab ends.)

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use prost::Message as _;
use proto::v1;
use tests::client::{Call, Client, Curl, SNAPSHOTS};
use tests::cluster::{Cluster, HostPlan, Surroundings};
use tests::guest::Guest;
use tests::lab::{HOST, key};

/// Everything is logged.
struct Talkative;

impl Surroundings for Talkative {
    fn level(&self) -> String {
        "trace".to_owned()
    }
}

/// Fails if a secret is in what was found somewhere.
fn clean(secrets: &[String], place: &str, found: &[u8]) {
    for secret in secrets {
        let at = found.windows(secret.len()).position(|part| part == secret.as_bytes());
        if let Some(at) = at {
            let around = &found[at.saturating_sub(200)..at];
            panic!("a secret is in {place}, after {:?}", String::from_utf8_lossy(around));
        }
    }
}

fn files(folder: &Path, all: &mut Vec<std::path::PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files(&path, all);
        } else if path.is_file() {
            all.push(path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_nowhere() {
    let mut cluster = Cluster::start_in(vec![HostPlan::daemon(HOST).unwrap()], &mut Talkative).unwrap();
    let daemon = cluster.host(HOST).unwrap().libvirtd().unwrap();
    let guest = Guest::new(&daemon.images().unwrap(), "student").unwrap();
    daemon.define(&guest).unwrap();
    let client = Client::admin(&cluster).unwrap();
    client.vm_in_state(&guest.vm(), v1::VmState::Shutoff).await.unwrap();
    let taken = client.done(client.create(&guest.vm(), "before exam", "").await).await.unwrap();
    client.done(client.revert(&taken.snapshot).await).await.unwrap();
    client.done(client.delete(&taken.snapshot, v1::DeleteScope::Only).await).await.unwrap();

    // Refused in every way, and the answers are looked through.
    let identity = cluster.identity();
    let good = identity.token("eve", &guest.uuid().to_string(), &["read"]).unwrap();
    let (alone, secret) = good.split_once('~').unwrap();
    let (head, signature) = alone.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}~{secret}", signature.chars().rev().collect::<String>());
    let wrong = format!("{alone}~{}", secret.chars().rev().collect::<String>());
    let curl = Curl::new(cluster.ports().gateway);
    let mut answers = Vec::new();
    for token in [
        good.clone(),
        forged,
        wrong,
        alone.to_owned(),
        format!("{good}x"),
        format!("{good}~{secret}"),
        identity.expired_token().unwrap(),
        "x".repeat(9000),
    ] {
        let name = format!("{}/snapshots/snap-none", guest.vm());
        let request = v1::RevertToSnapshotRequest { name, request_id: key(), ..Default::default() }.encode_to_vec();
        let call =
            Call { service: SNAPSHOTS, method: "RevertToSnapshot", request: &request, token: &token, request_id: "" };
        answers.extend(curl.bytes(&call).await.unwrap().0);
    }
    let secrets = identity.secrets().unwrap();
    assert!(secrets.len() > 8, "{} secrets", secrets.len());
    clean(&secrets, "an answer", &answers);

    let ports = cluster.ports();
    for port in [ports.api_metrics, ports.gateway_metrics, cluster.host(HOST).unwrap().metrics_port()] {
        let metrics = tests::tools::run(
            std::process::Command::new("curl").args(["-sf".to_owned(), format!("http://127.0.0.1:{port}/metrics")]),
        );
        clean(&secrets, "the metrics", metrics.unwrap().as_bytes());
    }

    let mut ids = vec![cluster.api().id().unwrap(), cluster.gateway().id().unwrap()];
    ids.push(cluster.host_mut(HOST).unwrap().agent().id().unwrap());
    for id in ids {
        for file in ["cmdline", "environ"] {
            clean(&secrets, file, &fs::read(format!("/proc/{id}/{file}")).unwrap());
        }
        let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    }

    // Logs, configurations, the catalogue with its trail, the agent's journal.
    let mut all = Vec::new();
    files(cluster.folder(), &mut all);
    let elsewhere = all.iter().filter(|path| !path.starts_with(cluster.identity().folder()));
    let mut looked = 0;
    for path in elsewhere {
        let secrets = cluster.identity().secrets().unwrap();
        clean(&secrets, &path.display().to_string(), &fs::read(path).unwrap());
        looked += 1;
    }
    assert!(looked > 6, "{looked} files");
    let logged: usize = cluster.logs().unwrap().iter().map(|(_, log)| log.matches("TRACE").count()).sum();
    assert!(logged > 100, "the logs were not talkative: {logged}");
}
