//! Certificates, CAs and issuer keys are replaced under load, as the operations guide says, and no call fails.
//!
//! Real gateway, API and agent. Callers read and change over every way in, some on one connection and some on a new one for
//! each call; two watches stay open. Meanwhile everything that has a date is replaced: leaves file by file and as a whole,
//! the CA by way of a bundle, the issuer's key by its kid.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may panic, its helpers are part of it, and it tells what it did"
)]

mod load;
mod replace;

use std::time::Duration;

use load::{Load, USERS, Way};
use proto::v1;
use replace::Pki;
use rustix::process::Signal;
use tests::client::Client;
use tests::cluster::{ALL_ACTIONS, Cluster};
use tests::guest::Guest;
use tests::tools::wait_for;

/// How many calls there have to be, of which none fails.
const CALLS: u64 = 10_000;
/// Longer than services go on without having looked at their files.
const LOOKED: Duration = Duration::from_millis(2500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_under_load_fails_no_call() {
    let cluster = Cluster::with_daemons(&["alpha"]).unwrap();
    let daemon = cluster.host("alpha").unwrap().libvirtd().unwrap();
    let guests: Vec<Guest> = ["student", "teacher"]
        .iter()
        .map(|name| {
            let guest = Guest::new(&daemon.images().unwrap(), name).unwrap();
            daemon.define(&guest).unwrap();
            guest
        })
        .collect();
    let token = cluster.identity().token("root", "*", &ALL_ACTIONS).unwrap();
    let admin = Client::grpc(&cluster, token).unwrap();
    for guest in &guests {
        admin.vm_in_state(&guest.vm(), v1::VmState::Shutoff).await.unwrap();
    }
    let pki = Pki::new(&cluster).unwrap();
    let users = (0..USERS).map(|user| format!("user-{user}"));
    let tokens = users.clone().map(|user| cluster.identity().token(&user, "*", &ALL_ACTIONS).unwrap());
    let load = Load::start(&cluster, &pki, &guests, tokens.collect());
    load.goes_on("before anything").await;

    for service in pki.services() {
        pki.renew(service).unwrap();
        pki.put(&format!("{service}.pem")).unwrap();
        // For as long as this the certificate and the key on disk do not go together.
        tokio::time::sleep(LOOKED).await;
        pki.put(&format!("{service}.key")).unwrap();
        tokio::time::sleep(LOOKED).await;
        load.goes_on(&format!("{service} file by file")).await;
    }
    for round in ["once", "twice"] {
        for service in pki.services() {
            pki.renew(service).unwrap();
        }
        for service in pki.services() {
            pki.put(&format!("{service}.pem")).unwrap();
            pki.put(&format!("{service}.key")).unwrap();
        }
        tokio::time::sleep(LOOKED).await;
        load.goes_on(&format!("all files {round}")).await;
    }
    for _ in 0..20 {
        // What `systemctl reload` does.
        cluster.processes().for_each(|process| process.signal(Signal::HUP).unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    load.goes_on("twenty reloads").await;
    pki.revoke_somebody().unwrap();
    tokio::time::sleep(LOOKED).await;
    load.goes_on("a new revocation list").await;

    pki.trust_both().unwrap();
    tokio::time::sleep(LOOKED).await;
    load.goes_on("both CAs").await;
    for service in pki.services() {
        pki.put_of_next(service).unwrap();
        tokio::time::sleep(LOOKED).await;
        load.goes_on(&format!("{service} by the new CA")).await;
    }
    // Every watch ends with its token within a quarter of an hour, which is how long the guide waits here: the one over the
    // gateway is on a connection whose certificates are the old CA's. The other one stays.
    load.renew_gateway_watch().await;
    pki.trust_next_only().unwrap();
    // What still had an old certificate is cut off in this time.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        load.goes_on("the new CA alone").await;
    }
    let old = pki.old_leaf("gateway");
    wait_for("the old CA to be refused", Duration::from_secs(60), || {
        Ok(replace::is_refused(cluster.ports().internal, &old).then_some(()))
    })
    .unwrap();

    pki.publish_both_keys().unwrap();
    let next: Vec<String> = users.map(|user| pki.next_token(&user).unwrap()).collect();
    load.counts_everywhere(&next[0]).await;
    load.switch_to(next).await;
    pki.publish_next_key_only().unwrap();
    tokio::time::sleep(LOOKED).await;
    load.goes_on("the new key alone").await;

    let told = load.finish(CALLS).await;
    eprintln!("{}", told.summary());
    assert!(told.failures.is_empty(), "{:#?}", told.failures.iter().take(20).collect::<Vec<_>>());
    assert!(told.calls >= CALLS, "{} calls only", told.calls);
    for way in [Way::Gateway, Way::GatewayAnew, Way::Public, Way::PublicAnew] {
        assert!(told.by_way.get(&way).copied().unwrap_or_default() > 500, "{way:?}: {told:?}");
    }
    for (process, log) in cluster.logs().unwrap() {
        assert!(!log.contains("panicked at"), "{process}: {log}");
    }
}
