//! CreateSnapshot: takes a snapshot of a machine.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::Action;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{Create, Request};
use snapshot_core::text::{Description, DisplayName};

use crate::app::{App, Call};
use crate::mutation::{Options, fingerprint, mutate};

pub async fn call(app: &App, call: Call<v1::CreateSnapshotRequest>) -> Result<v1::Operation, Error> {
    let request = &call.message;
    let vm = names::parse_vm("parent", &request.parent)?;
    let permit = call.authorize(vm, Action::Create)?;
    let snapshot = request.snapshot.as_ref().ok_or_else(|| Error::invalid("snapshot", "is required"))?;
    let content =
        v1::SnapshotContent::try_from(request.content).map_err(|_| Error::invalid("content", "is not known"))?;
    let storage = v1::StorageKind::try_from(request.storage).map_err(|_| Error::invalid("storage", "is not known"))?;
    let create = Create {
        snapshot: SnapshotId::from_uuid(uuid::Uuid::now_v7()),
        display_name: DisplayName::parse(&snapshot.display_name)?,
        description: Description::parse(&snapshot.description)?,
        protected: snapshot.protected,
        content: content.into(),
        storage: storage.into(),
        quiesce: request.quiesce,
        allow_crash_consistent: request.allow_crash_consistent,
    };
    let same = v1::CreateSnapshotRequest { request_id: String::new(), validate_only: false, ..request.clone() };
    let options = Options {
        request_id: &request.request_id,
        request_id_required: false,
        validate_only: request.validate_only,
        etag: "",
        fingerprint: fingerprint("CreateSnapshot", &same),
    };
    mutate(app, &call, permit, options, Request::Create(create)).await
}
