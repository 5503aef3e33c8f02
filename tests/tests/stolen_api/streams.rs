//! What is watched with a token ends with it; and the API, which watches for as long as it runs, goes on with the next.

use std::process::Command;
use std::time::{Duration, Instant};

use proto::agent::{WatchHostResponse, watch_host_response};
use proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use snapshot_core::Reason;
use tests::lab::{HOST, Lab};
use tests::tools::run;
use tonic::Streaming;

use super::thief::{Thief, end_of};
use super::{Case, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stolen_api_watches_no_longer_than_a_stolen_token_lives() {
    let case = Case::start().await;
    let identity = case.lab.cluster.identity();
    let short = || identity.token_for("root", "*", &["read"], "8").unwrap();
    let watching = Thief::with(&case.lab, &short());
    let mut stream: Streaming<WatchHostResponse> = watching.watch().await.unwrap();
    // An operation that is held up in its middle, to be followed.
    let qemu = Pid::from_raw(case.lab.daemon().unwrap().qemu_pid(&case.guest).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    let held = case.lab.client.create(&case.guest.vm(), "held", "").await.unwrap();
    let following = Thief::with(&case.lab, &short());
    let followed = tokio::time::timeout(Duration::from_secs(60), following.attach(&held.name)).await;
    let watched = tokio::time::timeout(Duration::from_secs(60), end_of(&mut stream)).await;
    kill_process(qemu, Signal::CONT).unwrap();
    refused("follow", followed.unwrap().map(drop), tonic::Code::Unauthenticated, "TOKEN_EXPIRED");
    assert_eq!(proto::status::reason(&watched.unwrap()), Some(Reason::TokenExpired));
    assert_eq!(
        case.lab.client.ended(held).await.unwrap().state(),
        v1::OperationState::Succeeded,
        "it goes on by itself"
    );
}

/// How many streams the API has opened to its host.
fn streams(lab: &Lab) -> u64 {
    let port = lab.cluster.ports().api_metrics;
    let text = run(Command::new("curl").args(["-sf", &format!("http://127.0.0.1:{port}/metrics")])).unwrap();
    let line = text.lines().find(|line| line.starts_with("snapshot_api_host_streams_total{"));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_goes_from_one_token_to_the_next_without_losing_sight_of_the_host() {
    const HANDED_OVER: u64 = 4;
    let mut case = Case::start().await;
    // As short as can be, so that streams are handed over in the time of a test.
    let file = case.lab.cluster.api_config();
    let text = std::fs::read_to_string(&file).unwrap();
    let short = text.replace("[own_issuer]\n", "[own_issuer]\nlifetime_seconds = 6\n");
    assert_ne!(text, short);
    std::fs::write(&file, short).unwrap();
    case.lab.cluster.api().stop().unwrap();
    let old = std::fs::read_to_string(case.lab.cluster.api().log()).unwrap().len();
    case.lab.cluster.start_api_again().unwrap();
    case.lab.client.vm_in_state(&case.guest.vm(), v1::VmState::Running).await.unwrap();
    let begun = Instant::now();
    while !case.lab.client.hosts().await.unwrap()[0].reachable {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (first, begun) = (streams(&case.lab), Instant::now());
    assert!(first >= 1);
    let mut seen = 0;
    while streams(&case.lab) < first + HANDED_OVER {
        assert!(begun.elapsed() < Duration::from_secs(120), "no stream takes the place of another");
        // Whoever asks meanwhile finds the host, and what virsh did a moment ago.
        assert!(case.lab.client.hosts().await.unwrap()[0].reachable);
        seen += 1;
        if seen % 20 == 0 {
            let name = format!("by-virsh-{seen}");
            case.lab.daemon().unwrap().virsh(&["snapshot-create-as", case.guest.name(), &name]).unwrap();
            case.lab.agreed_soon(&case.guest).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let api = case.lab.cluster.api();
    let log = std::fs::read_to_string(api.log()).unwrap().split_off(old);
    let after = log.split_once("reachable=true").unwrap().1;
    assert!(!after.contains("reachable=false"), "{after}");
    let watched = Thief::with(&case.lab, &case.lab.cluster.identity().own_token("*", &["read"]).unwrap());
    let first = watched.watch().await.unwrap().message().await.unwrap().unwrap();
    assert!(matches!(first.event, Some(watch_host_response::Event::Host(_))), "{HOST} tells of itself");
}
