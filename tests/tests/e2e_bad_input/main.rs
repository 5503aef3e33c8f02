//! Every bad request gets a typed error, and changes nothing: neither in the catalogue nor in libvirt nor in an image.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic, and its helpers are part of it"
)]

use std::fmt::Debug;

use proto::v1;
use tests::client::Refusal;
use tests::guest::Guest;
use tests::lab::{Lab, Traces, key};
use tonic::Code;

mod callers;
mod hidden;
mod machines;
mod requests;

const UNKNOWN: &str = "0191f7a0-0000-7000-8000-00000000000a";
const BAD_REQUEST: &str = "google.rpc.BadRequest";
const PRECONDITION: &str = "google.rpc.PreconditionFailure";
const RETRY: &str = "google.rpc.RetryInfo";

/// Checks code, reason, and that the details are ErrorInfo and these.
#[track_caller]
fn refused<T: Debug>(what: &str, result: Result<T, Refusal>, code: Code, reason: &str, details: &[&str]) -> Refusal {
    let refusal = result.expect_err(what);
    assert_eq!((refusal.code, refusal.reason.as_str()), (code, reason), "{what}: {refusal}");
    let mut told: Vec<&str> = refusal.details.iter().map(String::as_str).collect();
    told.sort_unstable();
    let mut expected = [&["google.rpc.ErrorInfo"], details].concat();
    expected.sort_unstable();
    assert_eq!(told, expected, "{what}: {refusal}");
    assert!(!refusal.message.is_empty(), "{what}");
    refusal
}

#[track_caller]
fn invalid<T: Debug>(what: &str, result: Result<T, Refusal>, field: &str) {
    let refusal = refused(what, result, Code::InvalidArgument, "INVALID_FIELD", &[BAD_REQUEST]);
    assert_eq!(refusal.metadata["field"], field, "{what}: {refusal}");
}

/// A lab with a guest and one snapshot of it, and what there was before the bad requests.
struct Case {
    lab: Lab,
    guest: Guest,
    snapshot: v1::Snapshot,
    before: Traces,
}

impl Case {
    async fn start() -> Self {
        let lab = Lab::start().unwrap();
        let guest = lab.guest("student").await.unwrap();
        guest.write('A').unwrap();
        let snapshot = lab.take(&guest, "before exam").await.unwrap();
        let before = lab.traces(&guest).await.unwrap();
        Self { lab, guest, snapshot, before }
    }

    async fn unchanged(&self) {
        assert_eq!(self.lab.traces(&self.guest).await.unwrap(), self.before);
        assert_eq!(self.guest.report().unwrap().disk, 'A');
    }

    fn create(&self, name: &str) -> v1::CreateSnapshotRequest {
        let snapshot = v1::Snapshot { display_name: name.to_owned(), ..Default::default() };
        v1::CreateSnapshotRequest { parent: self.guest.vm(), snapshot: Some(snapshot), ..Default::default() }
    }

    fn revert(&self) -> v1::RevertToSnapshotRequest {
        v1::RevertToSnapshotRequest { name: self.snapshot.name.clone(), request_id: key(), ..Default::default() }
    }

    fn delete(&self) -> v1::DeleteSnapshotRequest {
        v1::DeleteSnapshotRequest { name: self.snapshot.name.clone(), request_id: key(), ..Default::default() }
    }

    fn update(&self, change: impl FnOnce(&mut v1::Snapshot), mask: &[&str]) -> v1::UpdateSnapshotRequest {
        let mut snapshot = self.snapshot.clone();
        change(&mut snapshot);
        let paths = mask.iter().map(|&path| path.to_owned()).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        v1::UpdateSnapshotRequest { snapshot: Some(snapshot), update_mask, ..Default::default() }
    }
}
