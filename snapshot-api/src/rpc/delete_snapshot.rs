//! DeleteSnapshot: deletes a snapshot, what follows it, or both.

use proto::{names, v1};
use snapshot_core::authority::Action;
use snapshot_core::operation::Request;
use snapshot_core::{Error, Reason};

use crate::app::{App, Call};
use crate::mutation::{Options, fingerprint, mutate};

pub async fn call(app: &App, call: Call<v1::DeleteSnapshotRequest>) -> Result<v1::Operation, Error> {
    let request = &call.message;
    let (vm, id) = names::parse_snapshot("name", &request.name)?;
    let permit = call.authorize(vm, Action::Delete)?;
    if request.force {
        call.authorize(vm, Action::Force)?;
    }
    let scope = v1::DeleteScope::try_from(request.scope).map_err(|_| Error::invalid("scope", "is not known"))?;
    let delete = Request::Delete { snapshot: id, scope: scope.into(), force: request.force };
    let same = v1::DeleteSnapshotRequest { request_id: String::new(), validate_only: false, ..request.clone() };
    let options = Options {
        request_id: &request.request_id,
        request_id_required: true,
        validate_only: request.validate_only,
        etag: &request.etag,
        fingerprint: fingerprint("DeleteSnapshot", &same),
    };
    let missing = [Reason::SnapshotNotFound, Reason::VmNotFound];
    match mutate(app, &call, permit, options, delete).await {
        Err(error) if request.allow_missing && missing.contains(&error.reason()) => {
            Ok(already_gone(names::vm(vm), request.name.clone(), v1::OperationKind::Delete))
        }
        result => result,
    }
}

/// What `allow_missing` answers (AIP-135): an operation that had nothing to do, which nothing records.
pub fn already_gone(vm: String, snapshot: String, kind: v1::OperationKind) -> v1::Operation {
    let mut wire = v1::Operation { vm, snapshot, ..v1::Operation::default() };
    wire.set_kind(kind);
    wire.set_state(v1::OperationState::Succeeded);
    wire
}
