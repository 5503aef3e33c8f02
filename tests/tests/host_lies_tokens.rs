//! A host that has been taken over keeps what the API sends it, and uses it wherever there is something that takes tokens. A token
//! without its secret opens nothing at the API, by whatever way; and another host takes calls from the API alone.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message as _;
use proto::{agent, v1};
use serde_json::Value;
use tests::client::{Call, Client, Face as _, Grpc, HOSTS, Refusal, SNAPSHOTS, faces};
use tests::cluster::ALL_ACTIONS;
use tests::guest::Guest;
use tests::lab::{HOST, Lab, key};
use tests::recorder::{Received, Recorder};
use tonic::Code;

const OTHER: &str = "beta";
const AGENT: &str = "ravada.snapshot.agent.v1.AgentService";
/// How long the API may take to find a host again.
const FOUND: Duration = Duration::from_secs(60);

struct Site {
    lab: Lab,
    recorder: Recorder,
    guest: Guest,
    /// A user's credential and an administrator's.
    credentials: [String; 2],
}

impl Site {
    async fn start() -> Self {
        let mut lab = Lab::with_hosts(&[HOST, OTHER]).unwrap();
        let recorder = Recorder::in_front_of(&mut lab.cluster, HOST).await.unwrap();
        let begun = Instant::now();
        let is_watched = || recorder.received().iter().any(|call| call.path.ends_with("/WatchHost"));
        while !is_watched() || !lab.client.hosts().await.unwrap().iter().all(|host| host.reachable) {
            assert!(begun.elapsed() < FOUND, "the API does not find the host");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let guest = lab.guest("student").await.unwrap();
        let identity = lab.cluster.identity();
        let alice = identity.token("alice", &guest.uuid().to_string(), &ALL_ACTIONS[..6]).unwrap();
        let credentials = [alice, identity.admin_token().unwrap()];
        Self { lab, recorder, guest, credentials }
    }

    /// Has the API call the host with tokens of users, over every face.
    async fn used(&self) -> v1::Snapshot {
        let [alice, admin] = &self.credentials;
        let mut kept = None;
        for face in faces(&self.lab.cluster).unwrap() {
            let alice = Client::new(face, alice.as_str());
            let taken = alice.done(alice.create(&self.guest.vm(), "kept", "").await).await.unwrap();
            if let Some(before) = kept.replace(taken.snapshot) {
                alice.done(alice.delete(&before, v1::DeleteScope::Only).await).await.unwrap();
            }
        }
        let kept = kept.unwrap();
        let alice = Client::grpc(&self.lab.cluster, alice.as_str()).unwrap();
        let plan = v1::RevertToSnapshotRequest { name: kept.clone(), validate_only: true, ..Default::default() };
        alice.revert_as(plan).await.unwrap();
        alice.done(alice.revert(&kept).await).await.unwrap();
        let admin = Client::grpc(&self.lab.cluster, admin.as_str()).unwrap();
        let orphans = v1::ListOrphansRequest { parent: format!("hosts/{HOST}"), ..Default::default() };
        let _none: v1::ListOrphansResponse = admin.call((HOSTS, "ListOrphans"), &orphans).await.unwrap();
        alice.snapshot(&kept).await.unwrap()
    }

    /// Whatever an attacker can make of a token that was received: as it is, and with each secret that one could think of.
    fn made_of(&self, token: &str) -> Vec<String> {
        let claims = claims(token);
        let hash = claims["cnf"]["secret#S256"].as_str().expect("it is bound to a secret").to_owned();
        let of_another = self.lab.cluster.identity().token("mallory", "*", &["read"]).unwrap();
        let (_, secret) = of_another.split_once('~').unwrap();
        let with = |secret: &str| format!("{token}~{secret}");
        vec![
            token.to_owned(),
            with(""),
            with(&hash),
            with(secret),
            with(&"A".repeat(43)),
            with(&format!("~{secret}")),
            with(&format!("{secret}~")),
            with(&format!("{secret}~{secret}")),
            with(token),
            with(claims["jti"].as_str().unwrap()),
            // In the place of the token that the other's secret belongs to.
            of_another.replace(claims_of(&of_another), claims_of(token)),
        ]
    }
}

fn claims_of(token: &str) -> &str {
    token.split('.').nth(1).unwrap()
}

fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims_of(token)).unwrap()).unwrap()
}

/// The tokens that were received, each with the methods that it came with.
fn tokens(received: &[Received]) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for call in received.iter().filter(|call| call.path.contains("AgentService")) {
        let (_, method) = call.path.rsplit_once('/').unwrap();
        all.entry(call.token().to_owned()).or_default().insert(method.to_owned());
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_received_opens_nothing_at_the_api() {
    let site = Site::start().await;
    let kept = site.used().await;
    let received = site.recorder.received();
    for call in &received {
        let everything = format!("{call:?} {}", String::from_utf8_lossy(&call.body));
        for credential in &site.credentials {
            let (_, secret) = credential.split_once('~').unwrap();
            assert!(!everything.contains(secret), "a host received a secret: {}", call.path);
        }
        assert!(!everything.contains('~'), "a host received a credential: {everything}");
    }
    let tokens = tokens(&received);
    let methods: BTreeSet<_> = tokens.values().flatten().map(String::as_str).collect();
    for method in ["WatchHost", "StartOperation", "PlanOperation", "ListOrphans"] {
        assert!(methods.contains(method), "{method} was not received, only {methods:?}");
    }
    let subjects: BTreeSet<_> = tokens.keys().map(|token| claims(token)["sub"].as_str().unwrap().to_owned()).collect();
    assert_eq!(subjects, BTreeSet::from(["alice", "root", "snapshot-api"].map(str::to_owned)));

    let vm = site.guest.vm();
    let create = v1::CreateSnapshotRequest {
        parent: vm.clone(),
        snapshot: Some(v1::Snapshot { display_name: "stolen".to_owned(), ..Default::default() }),
        request_id: key(),
        ..Default::default()
    };
    let delete = v1::DeleteSnapshotRequest { name: kept.name.clone(), request_id: key(), ..Default::default() };
    let calls = [
        ("GetVm", v1::GetVmRequest { name: vm.clone() }.encode_to_vec()),
        ("CreateSnapshot", create.encode_to_vec()),
        ("DeleteSnapshot", delete.encode_to_vec()),
    ];
    let watch = v1::WatchVmRequest { name: vm.clone(), ..Default::default() }.encode_to_vec();
    for face in faces(&site.lab.cluster).unwrap() {
        for (token, credential) in
            tokens.keys().flat_map(|token| site.made_of(token).into_iter().map(move |it| (token, it)))
        {
            let refused = |method: &str, refusal: Refusal| {
                let told = (refusal.code, refusal.reason.as_str());
                let context = format!("{}, {method}, {credential}: {refusal}", face.name());
                assert_eq!(told, (Code::Unauthenticated, "TOKEN_INVALID"), "{context}");
                assert!(!refusal.message.contains(&*credential), "{context}");
            };
            let call =
                |method, request| Call { service: SNAPSHOTS, method, request, token: &credential, request_id: "" };
            let as_received = credential == *token;
            for (method, request) in calls.iter().take(if as_received { calls.len() } else { 1 }) {
                refused(method, face.unary(call(method, request)).await.expect_err(method));
            }
            if as_received {
                refused("WatchVm", face.stream(call("WatchVm", &watch)).await.expect_err("WatchVm"));
            }
        }
    }
    // Whom the tokens are of, they are served as before.
    let alice = Client::grpc(&site.lab.cluster, site.credentials[0].as_str()).unwrap();
    let listed = alice.snapshots(&vm).await.unwrap();
    assert_eq!(listed.iter().map(|it| &it.name).collect::<Vec<_>>(), [&kept.name]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_received_opens_no_other_host() {
    let site = Site::start().await;
    site.used().await;
    let (cluster, identity) = (&site.lab.cluster, site.lab.cluster.identity());
    let tokens = tokens(&site.recorder.received());
    // The other host's agent, and the API's listener for the gateway: at both a certificate comes before any token.
    let beta = cluster.host(OTHER).unwrap().port();
    let watch = agent::WatchHostRequest::default().encode_to_vec();
    let vms = v1::ListVmsRequest::default().encode_to_vec();
    let doors = [(beta, AGENT, "WatchHost", &watch), (cluster.ports().internal, SNAPSHOTS, "ListVms", &vms)];
    for (port, service, method, request) in doors {
        for token in tokens.keys() {
            for leaf in [identity.agent(HOST), identity.agent(OTHER)] {
                let face = Grpc::mutual(port, &identity.ca(), &leaf).unwrap();
                let refusal = face.stream(Call { service, method, request, token, request_id: "" }).await;
                let refusal = refusal.expect_err("a host's certificate opens another host");
                assert_eq!(refusal.reason, "", "the connection was closed, nothing was answered: {refusal}");
                let of_the_way = [Code::Unknown, Code::Unavailable, Code::Internal, Code::Cancelled];
                assert!(of_the_way.contains(&refusal.code), "{refusal}");
            }
        }
    }
    // It is the certificate that was refused: the API's own is not.
    let api = Grpc::mutual(beta, &identity.ca(), &identity.api()).unwrap();
    let reads = tokens.iter().find(|(_, methods)| methods.contains("WatchHost")).unwrap().0;
    let call = Call { service: AGENT, method: "WatchHost", request: &watch, token: reads, request_id: "" };
    assert!(api.open(call).await.unwrap().message().await.unwrap().is_some());
}
