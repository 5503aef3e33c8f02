//! Many connections from one address: a reverse proxy that is trusted, and one that is not.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tests::client::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tonic::Code;

use crate::beside::Beside;
use crate::raw::{Io, Target};
use crate::{STRANGER, cluster, targets, token, was_logged};

const PAGES: usize = 1100;

/// The status of one request, and the connection it was asked over. 0 stands for a connection without an answer.
async fn get(target: &Target, path: &str, client: usize) -> (u16, Option<Box<dyn Io>>) {
    let request = async {
        let mut io = target.connect(STRANGER).await?;
        let forwarded = format!("203.0.113.9, 192.0.2.{}", client % 250 + 1);
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: {forwarded}\r\n\r\n");
        io.write_all(head.as_bytes()).await?;
        let mut answer = [0; 12];
        io.read_exact(&mut answer).await?;
        let status = String::from_utf8_lossy(&answer[9..]).parse().unwrap_or(0);
        std::io::Result::Ok((status, Some(io)))
    };
    timeout(Duration::from_secs(20), request).await.expect("an answer in time").unwrap_or((0, None))
}

/// So many pages that stay open, by the status of their first request, and those connections.
async fn pages(target: &Target) -> (BTreeMap<u16, usize>, Vec<Box<dyn Io>>) {
    let (mut counts, mut held) = (BTreeMap::new(), Vec::new());
    for begin in (0..PAGES).step_by(20) {
        for (status, io) in join_all((begin..begin + 20).map(|page| get(target, "/", page))).await {
            *counts.entry(status).or_default() += 1;
            held.extend(io);
        }
    }
    (counts, held)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pages_behind_a_trusted_proxy_are_served() {
    let cluster = cluster("", "trusted_proxies = [\"127.0.0.2/32\"]");
    let [_, gateway] = targets(&cluster);
    let beside = Beside::begin(&cluster, &gateway).await;
    let (counts, held) = pages(&gateway).await;
    assert_eq!(counts, BTreeMap::from([(200, PAGES)]));
    let meanwhile = beside.time(|| false).await;
    drop(held);
    assert!(beside.agrees(meanwhile).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_limit_of_an_address_a_connection_is_answered_and_health_is_told() {
    let cluster = cluster("", "");
    let [_, gateway] = targets(&cluster);
    let (counts, _held) = pages(&gateway).await;
    assert_eq!(counts, BTreeMap::from([(200, 1024), (503, PAGES - 1024)]));
    // A spare slot is free again as soon as its request was answered.
    for page in 0..200 {
        assert_eq!(get(&gateway, "/", page).await.0, 503, "page {page} beyond the limit");
    }
    was_logged(&cluster, &gateway, "connections_per_address");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(&gateway, path, 0).await.0, 200, "{path}");
    }
    let metrics = format!("http://127.0.0.1:{}/metrics", cluster.ports().gateway_metrics);
    let output = std::process::Command::new("curl").args(["-s", "--max-time", "10", &metrics]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("snapshot_port_limits_total{limit=\"connections_per_address\"}"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_limit_the_api_refuses_calls_by_a_status_and_tells_its_health() {
    let cluster = cluster("connections_per_address = 3", "");
    let [api, _] = targets(&cluster);
    let token = token(&cluster);
    let client = || Client::new(Box::new(api.client(STRANGER)), token.clone());
    let held: Vec<Client> = (0..3).map(|_| client()).collect();
    for client in &held {
        client.vms().await.unwrap();
    }
    let refusal = client().vms().await.expect_err("a fourth connection");
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "RATE_LIMITED"), "{refusal}");
    was_logged(&cluster, &api, "connections_per_address");
    let health = ("grpc.health.v1.Health", "Check");
    client().call::<(), ()>(health, &()).await.expect("its health");
    for client in &held {
        client.vms().await.expect("who is within the limit goes on");
    }
}
