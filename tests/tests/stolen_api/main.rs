//! Somebody has the API's machine, or some of what is on it: its certificate and key, its own issuer's key, a user's token that
//! came by. What can they do to a host? They call the agent directly, because nobody has to go through the API who has its
//! certificate. After each attempt virsh, the images and the guest are asked whether anything was changed.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic, and its helpers are part of it")]

mod streams;
mod thief;
mod users;

use std::fmt::Debug;

use proto::v1;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{DeleteScope, Request};
use tests::client::{Client, Refusal};
use tests::cluster::ALL_ACTIONS;
use tests::guest::Guest;
use tests::lab::{Lab, Traces, id};
use tonic::Code;

use self::thief::{Thief, delete, forced, harmful, new_snapshot, revert, spec, update, vm};

/// A user's machine: with a snapshot that has 'A' on the disk and in memory, and 'B' since.
struct Case {
    lab: Lab,
    guest: Guest,
    snapshot: SnapshotId,
    /// The operation that took it.
    operation: String,
    before: Traces,
}

impl Case {
    async fn start() -> Self {
        Self::of(Lab::start().unwrap(), "student").await
    }

    async fn of(lab: Lab, name: &str) -> Self {
        let guest = lab.guest(name).await.unwrap();
        guest.write('A').unwrap();
        let created = lab.client.done(lab.client.create(&guest.vm(), "before exam", "").await).await.unwrap();
        guest.write('B').unwrap();
        let snapshot = id(&created.snapshot).parse().unwrap();
        let before = lab.traces(&guest).await.unwrap();
        Self { lab, guest, snapshot, operation: created.name, before }
    }

    /// By virsh, the images and the guest.
    async fn unchanged(&self, after: &str) {
        assert_eq!(self.lab.traces(&self.guest).await.unwrap(), self.before, "{after}");
        let report = self.guest.report().unwrap();
        assert_eq!((report.disk, report.ram), ('B', 'B'), "{after}");
    }

    /// What the user has taken can be gone back to.
    async fn goes_back(&self) {
        let name = format!("{}/snapshots/{}", self.guest.vm(), self.snapshot);
        self.lab.client.done(self.lab.client.revert(&name).await).await.unwrap();
        let report = self.guest.report().unwrap();
        assert_eq!((report.disk, report.ram), ('A', 'A'));
    }

    /// The issuer that libvirt's record of a snapshot names, as virsh shows it.
    fn issuer(&self, snapshot: &SnapshotId) -> String {
        let description = self.lab.daemon().unwrap().description(&self.guest, snapshot.as_str()).unwrap();
        let (_, marker) = description.rsplit_once("-- ravada-snapshots 1 ").unwrap();
        let marker: serde_json::Value = serde_json::from_str(marker).unwrap();
        marker["issuer"].as_str().unwrap_or_default().to_owned()
    }
}

#[track_caller]
fn refused<T: Debug>(what: &str, result: Result<T, Refusal>, code: Code, reason: &str) -> Refusal {
    let refusal = result.expect_err(what);
    assert_eq!((refusal.code, refusal.reason.as_str()), (code, reason), "{what}: {refusal}");
    refusal
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stolen_api_certificate_alone_opens_nothing() {
    let case = Case::start().await;
    let expired = case.lab.cluster.identity().expired_token().unwrap();
    for (token, reason) in [("", "TOKEN_MISSING"), ("rubbish", "TOKEN_INVALID"), (expired.as_str(), "TOKEN_EXPIRED")] {
        let thief = Thief::with(&case.lab, token);
        let refused = |what: &str, result: Result<(), Refusal>| {
            refused(&format!("{what}, {reason}"), result, Code::Unauthenticated, reason);
        };
        refused("watch", thief.watch().await.map(drop));
        refused("attach", thief.attach(&case.operation).await.map(drop));
        refused("cancel", thief.cancel(&case.operation).await);
        thief.orphans().await.into_iter().for_each(|result| refused("orphans", result));
        let mut all = harmful(&case.snapshot);
        all.push(Request::Create(new_snapshot("x")));
        for request in all {
            let spec = spec(vm(&case.guest), request);
            refused("plan", thief.plan(&spec).await);
            refused("start", thief.start(&spec).await.map(drop));
        }
        case.unchanged(reason).await;
    }
    case.goes_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stolen_api_own_key_deletes_what_it_made_and_nothing_of_anybody() {
    let case = Case::start().await;
    let identity = case.lab.cluster.identity();
    // Whatever it writes into a token of its own, more than this is above its ceiling and the token is no good at all.
    for action in ["update", "revert", "purge", "force", "admin"] {
        let thief = Thief::with(&case.lab, &identity.own_token("*", &["read", action]).unwrap());
        let above = refused(action, thief.watch().await.map(drop), Code::Unauthenticated, "TOKEN_INVALID");
        assert_eq!(above.metadata["cause"], "TOKEN_ABOVE_CEILING", "{action}");
        for request in harmful(&case.snapshot) {
            let started = thief.start(&spec(vm(&case.guest), request)).await;
            refused(action, started.map(drop), Code::Unauthenticated, "TOKEN_INVALID");
        }
    }
    let own = identity.own_token("*", &["read", "create", "delete"]).unwrap();
    let thief = Thief::with(&case.lab, &own);
    for request in harmful(&case.snapshot) {
        let what = format!("{request:?}");
        let spec = spec(vm(&case.guest), request);
        for result in [thief.plan(&spec).await, thief.start(&spec).await.map(drop)] {
            refused(&what, result, Code::PermissionDenied, "ACTION_NOT_GRANTED");
        }
    }
    refused("cancel", thief.cancel(&case.operation).await, Code::PermissionDenied, "ACTION_NOT_GRANTED");
    for result in thief.orphans().await {
        refused("orphans", result, Code::PermissionDenied, "ACTION_NOT_GRANTED");
    }
    case.unchanged("what it may not").await;
    // The API's own listeners do not know its issuer.
    for client in [Client::grpc(&case.lab.cluster, own.as_str()).unwrap()] {
        refused("the public API", client.vms().await, Code::Unauthenticated, "TOKEN_INVALID");
        refused(
            "the public API",
            client.create(&case.guest.vm(), "x", "").await,
            Code::Unauthenticated,
            "TOKEN_INVALID",
        );
    }

    // What it may: see, take a snapshot, and delete that again.
    assert!(thief.watch().await.unwrap().message().await.unwrap().is_some());
    assert_eq!(thief.attach(&case.operation).await.unwrap().state(), v1::OperationState::Succeeded);
    let (mut first, mut kept) = (new_snapshot("nightly"), new_snapshot("protected"));
    kept.protected = true;
    let (one, two) = (first.snapshot.clone(), kept.snapshot.clone());
    for create in [first.clone(), kept] {
        let ended = thief.start(&spec(vm(&case.guest), Request::Create(create))).await.unwrap();
        assert_eq!(ended.state(), v1::OperationState::Succeeded, "{:?}", ended.error);
    }
    assert_eq!((case.issuer(&one), case.issuer(&case.snapshot)), ("snapshot-service".to_owned(), "ravada".to_owned()));
    let users = case.lab.take(&case.guest, "above it").await.unwrap();
    let with_all = case.lab.traces(&case.guest).await.unwrap();
    let users_id: SnapshotId = id(&users.name).parse().unwrap();
    for (what, request) in [
        ("protected", forced(&two, DeleteScope::Only)),
        ("with a user's above it", forced(&one, DeleteScope::Subtree)),
        ("what is above it", forced(&one, DeleteScope::Descendants)),
        ("a user's above its own", delete(&users_id, DeleteScope::Only)),
        ("with its own above it", forced(&case.snapshot, DeleteScope::Subtree)),
        ("back to its own", revert(&one, None)),
        ("its own, renamed", update(&one)),
        ("everything", Request::Purge { force: true }),
    ] {
        let result = thief.start(&spec(vm(&case.guest), request)).await;
        refused(what, result.map(drop), Code::PermissionDenied, "ACTION_NOT_GRANTED");
        assert_eq!(case.lab.traces(&case.guest).await.unwrap(), with_all, "{what}");
    }
    // The user renames it: it stays the service's.
    let renamed = v1::Snapshot {
        name: format!("{}/snapshots/{one}", case.guest.vm()),
        display_name: "renamed".to_owned(),
        ..Default::default()
    };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] });
    let request = v1::UpdateSnapshotRequest { snapshot: Some(renamed), update_mask, ..Default::default() };
    case.lab.client.done(case.lab.client.update(request).await).await.unwrap();
    assert_eq!(case.issuer(&one), "snapshot-service");
    let ended = thief.start(&spec(vm(&case.guest), delete(&one, DeleteScope::Only))).await.unwrap();
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{:?}", ended.error);
    let left = case.lab.daemon().unwrap().snapshots(&case.guest).unwrap();
    assert!(!left.contains(&one.to_string()) && left.len() == 3, "{left:?}");
    // To take one under the id of another is no way to get at that.
    first.snapshot = case.snapshot.clone();
    let again = thief.start(&spec(vm(&case.guest), Request::Create(first))).await;
    refused("under the id of another", again.map(drop), Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(case.issuer(&case.snapshot), "ravada");
    assert_eq!(case.guest.report().unwrap().disk, 'B');
    case.goes_back().await;
}

/// Somebody who looks at libvirt alone sees to whom a snapshot belongs, and one of an older version belongs to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stolen_api_own_key_deletes_nothing_whose_maker_is_not_known() {
    let case = Case::start().await;
    let token = case.lab.cluster.identity().own_token("*", &ALL_ACTIONS[..2]).unwrap();
    let thief = Thief::with(&case.lab, &token);
    let create = new_snapshot("nightly");
    thief.start(&spec(vm(&case.guest), Request::Create(create.clone()))).await.unwrap();
    // As a version before this would have written it.
    let daemon = case.lab.daemon().unwrap();
    let xml =
        daemon.virsh(&["snapshot-dumpxml", case.guest.name(), create.snapshot.as_str(), "--security-info"]).unwrap();
    let issuer = [",&quot;issuer&quot;:&quot;snapshot-service&quot;", ",\"issuer\":\"snapshot-service\""];
    let old = issuer.iter().fold(xml.clone(), |xml, text| xml.replace(text, ""));
    assert_ne!(xml, old);
    let file = case.lab.cluster.folder().join("old.xml");
    std::fs::write(&file, old).unwrap();
    daemon.virsh(&["snapshot-create", case.guest.name(), &file.display().to_string(), "--redefine"]).unwrap();
    assert_eq!(case.issuer(&create.snapshot), "");
    let own = case.lab.cluster.identity().own_token("*", &["read", "delete"]).unwrap();
    let delete_it = spec(vm(&case.guest), delete(&create.snapshot, DeleteScope::Only));
    let deleted = Thief::with(&case.lab, &own).start(&delete_it).await;
    refused("nobody's", deleted.map(drop), Code::PermissionDenied, "ACTION_NOT_GRANTED");
    assert!(daemon.snapshots(&case.guest).unwrap().contains(&create.snapshot.to_string()));
}
