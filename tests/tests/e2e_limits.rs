//! What one user may use of the API, and that no other user notices: through the gateway and straight to the API.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::time::{Duration, Instant};

use proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tests::client::{Client, Grpc, Refusal, VmWatch, faces};
use tests::cluster::ALL_ACTIONS;
use tests::lab::Lab;
use tonic::Code;

/// A cluster whose API has these limits.
fn lab_with(limits: &str) -> Lab {
    let mut lab = Lab::start().unwrap();
    let path = lab.cluster.api_config();
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("user_operations_per_host = 0", limits);
    std::fs::write(&path, text).unwrap();
    lab.cluster.api().stop().unwrap();
    lab.cluster.start_api_again().unwrap();
    lab
}

fn token(lab: &Lab, user: &str) -> String {
    lab.cluster.identity().token(user, "*", &ALL_ACTIONS).unwrap()
}

fn is_limited(refusal: &Refusal) {
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "RATE_LIMITED"), "{refusal}");
    assert!(refusal.details.iter().any(|detail| detail == "google.rpc.RetryInfo"), "{refusal}");
    assert!(refusal.details.iter().any(|detail| detail == "google.rpc.QuotaFailure"), "{refusal}");
}

/// The first refusal among so many calls.
async fn refused_within(client: &Client, calls: usize) -> Option<Refusal> {
    for _ in 0..calls {
        if let Err(refusal) = client.vms().await {
            return Some(refusal);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_asks_too_often_is_refused_over_every_face_and_nobody_else_is() {
    let lab = lab_with("user_requests_per_second = 1\nuser_request_burst = 4");
    // Two tokens of one user are one user.
    let tokens = [token(&lab, "anna"), token(&lab, "anna")];
    for (number, face) in faces(&lab.cluster).unwrap().into_iter().enumerate() {
        let name = face.name();
        let anna = Client::new(face, tokens[number % 2].clone());
        // Each call that gets through at one a second is followed by five that do not come as slowly.
        let refusal = refused_within(&anna, 50).await.unwrap_or_else(|| panic!("{name}: not refused"));
        is_limited(&refusal);
        assert_eq!(refusal.message, "too many requests of this user", "{name}");
    }
    let berta = token(&lab, "berta");
    for face in [Grpc::plain(lab.cluster.ports().gateway), public(&lab)] {
        let berta = Client::new(Box::new(face.unwrap()), berta.clone());
        berta.vms().await.expect("another user is not refused");
    }
    // And the first one is served again when they have waited.
    let anna = Client::grpc(&lab.cluster, tokens[0].clone()).unwrap();
    let begun = Instant::now();
    while anna.vms().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "a user who waits is refused for ever");
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
}

fn public(lab: &Lab) -> anyhow::Result<Grpc> {
    Grpc::tls(lab.cluster.ports().public, &lab.cluster.identity().ca())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_counted_by_user_for_as_long_as_they_are_open() {
    let lab = lab_with("user_watches = 2");
    let guest = lab.guest("student").await.unwrap();
    let (anna, berta) = (token(&lab, "anna"), token(&lab, "berta"));
    let (gateway, public) = (Grpc::plain(lab.cluster.ports().gateway).unwrap(), public(&lab).unwrap());
    let open = async |face: &Grpc, token: &str| {
        let mut watch = VmWatch::open(face, token, &guest.vm(), "").await?;
        // The gateway's answer has begun by the time that it knows of a refusal.
        match watch.next().await {
            Ok(_) => Ok(watch),
            Err(error) => Err(error.downcast::<Refusal>().unwrap()),
        }
    };
    let held = [open(&gateway, &anna).await.unwrap(), open(&public, &anna).await.unwrap()];
    is_limited(&open(&gateway, &anna).await.err().expect("a third watch"));
    is_limited(&open(&public, &anna).await.err().expect("a third watch"));
    open(&gateway, &berta).await.expect("another user is not refused");
    drop(held);
    let begun = Instant::now();
    while open(&public, &anna).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the places of watches do not come back");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_tokens_count_for_their_address_and_harm_nobody_who_has_a_good_one() {
    let lab = lab_with("address_requests_per_second = 1\naddress_request_burst = 5");
    let face = public(&lab).unwrap();
    let good = Client::new(Box::new(face.clone()), token(&lab, "anna"));
    good.vms().await.expect("the first of five");
    let mut refusals = Vec::new();
    for number in 0..20 {
        let made_up = Client::new(Box::new(face.clone()), format!("{number}.made.up"));
        refusals.push(made_up.vms().await.expect_err("a made-up token"));
    }
    assert_eq!(refusals[0].code, Code::Unauthenticated, "{}", refusals[0]);
    let limited = refusals.iter().find(|refusal| refusal.code != Code::Unauthenticated).expect("a limit");
    is_limited(limited);
    assert_eq!(limited.message, "too many requests from this address");
    for _ in 0..20 {
        good.vms().await.expect("one whose token was taken before goes on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_cannot_have_all_places_of_a_host() {
    let lab = lab_with("user_operations_per_host = 1");
    let (first, second) = (lab.guest("first").await.unwrap(), lab.guest("second").await.unwrap());
    let anna = Client::grpc(&lab.cluster, token(&lab, "anna")).unwrap();
    let berta = Client::grpc(&lab.cluster, token(&lab, "berta")).unwrap();
    let taken = lab.take(&first, "to be deleted").await.unwrap();
    // QEMU stands still, so the operation stays under way.
    let qemu = Pid::from_raw(lab.daemon().unwrap().qemu_pid(&first).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    let running = anna.delete(&taken.name, v1::DeleteScope::Only).await.unwrap();
    let refusal = anna.create(&second.vm(), "one too many", "").await.expect_err("a second operation");
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "HOST_BUSY"), "{refusal}");
    let other = berta.done(berta.create(&second.vm(), "another user's", "").await).await.unwrap();
    assert_eq!(other.state(), v1::OperationState::Succeeded);
    kill_process(qemu, Signal::CONT).unwrap();
    anna.ended(running).await.unwrap();
    anna.done(anna.create(&second.vm(), "in its turn", "").await).await.unwrap();
}
