//! Commands that change something.
//!
//! Each is: find what the person means; where something can be lost, ask the service what would be, and have it confirmed;
//! ask for the change under a request id; wait for its end. A confirmed revert or deletion carries the etag of what was
//! looked at, so that it is refused when the snapshot was changed in between.

use prost_types::FieldMask;
use proto::v1;
use tonic::{Response, Status};
use uuid::Uuid;

use crate::arguments::{Change, Content, Create, Edit, Purge, Remove, Revert, Scope, Storage, Then};
use crate::confirm::confirm;
use crate::connection::Service;
use crate::failure::Failure;
use crate::out::Out;
use crate::{follow, lookup, show};

/// `create`.
pub(crate) async fn create(service: &Service, out: &Out, it: Create) -> Result<(), Failure> {
    let request = v1::CreateSnapshotRequest {
        parent: lookup::vm(service, &it.vm).await?,
        snapshot: Some(v1::Snapshot { display_name: it.name, description: it.description, ..Default::default() }),
        content: match it.content {
            None => v1::SnapshotContent::Unspecified,
            Some(Content::Disks) => v1::SnapshotContent::Disks,
            Some(Content::Memory) => v1::SnapshotContent::DisksAndMemory,
        }
        .into(),
        storage: match it.storage {
            None => v1::StorageKind::Unspecified,
            Some(Storage::Internal) => v1::StorageKind::Internal,
            Some(Storage::External) => v1::StorageKind::External,
        }
        .into(),
        quiesce: it.quiesce,
        allow_crash_consistent: it.allow_crash_consistent,
        request_id: request_id(&it.change),
        validate_only: it.change.dry_run,
    };
    begun(service, out, &it.change, service.snapshots.clone().create_snapshot(request).await).await
}

/// `revert`.
pub(crate) async fn revert(service: &Service, out: &Out, it: Revert) -> Result<(), Failure> {
    let vm = lookup::vm(service, &it.chosen.vm).await?;
    let snapshot = lookup::snapshot(service, &vm, &it.chosen.snapshot).await?;
    let request = v1::RevertToSnapshotRequest {
        name: snapshot.name,
        etag: snapshot.etag,
        save_current: it.save_current.is_some(),
        save_current_display_name: it.save_current.unwrap_or_default(),
        run_after: match it.then {
            None => v1::RunAfter::Unspecified,
            Some(Then::Recorded) => v1::RunAfter::AsRecorded,
            Some(Then::Running) => v1::RunAfter::Running,
            Some(Then::Off) => v1::RunAfter::Off,
        }
        .into(),
        request_id: request_id(&it.change),
        validate_only: true,
    };
    let mut snapshots = service.snapshots.clone();
    let plan = snapshots.revert_to_snapshot(request.clone()).await;
    let question = format!("Go back to “{}”?", show::clean(&snapshot.display_name));
    if !agreed(out, &it.change, it.yes, plan, &question)? {
        return Ok(());
    }
    let request = v1::RevertToSnapshotRequest { validate_only: false, ..request };
    begun(service, out, &it.change, snapshots.revert_to_snapshot(request).await).await
}

/// `remove`.
pub(crate) async fn remove(service: &Service, out: &Out, it: Remove) -> Result<(), Failure> {
    let vm = lookup::vm(service, &it.chosen.vm).await?;
    let snapshot = lookup::snapshot(service, &vm, &it.chosen.snapshot).await?;
    let (scope, what) = match it.scope {
        Scope::Only => (v1::DeleteScope::Only, ""),
        Scope::Subtree => (v1::DeleteScope::Subtree, " and all that were taken from it"),
        Scope::Descendants => (v1::DeleteScope::Descendants, "'s descendants"),
    };
    let request = v1::DeleteSnapshotRequest {
        name: snapshot.name,
        etag: snapshot.etag,
        scope: scope.into(),
        allow_missing: false,
        force: it.force,
        request_id: request_id(&it.change),
        validate_only: true,
    };
    let mut snapshots = service.snapshots.clone();
    let plan = snapshots.delete_snapshot(request.clone()).await;
    let question = format!("Delete “{}”{what}?", show::clean(&snapshot.display_name));
    if !agreed(out, &it.change, it.yes, plan, &question)? {
        return Ok(());
    }
    let request = v1::DeleteSnapshotRequest { validate_only: false, ..request };
    begun(service, out, &it.change, snapshots.delete_snapshot(request).await).await
}

/// `purge`.
pub(crate) async fn purge(service: &Service, out: &Out, it: Purge) -> Result<(), Failure> {
    let request = v1::PurgeVmRequest {
        name: lookup::vm(service, &it.vm).await?,
        force: it.force,
        allow_missing: false,
        request_id: request_id(&it.change),
        validate_only: true,
    };
    let mut snapshots = service.snapshots.clone();
    let plan = snapshots.purge_vm(request.clone()).await;
    let question = format!("Delete all snapshots of {}?", show::clean(&it.vm));
    if !agreed(out, &it.change, it.yes, plan, &question)? {
        return Ok(());
    }
    let request = v1::PurgeVmRequest { validate_only: false, ..request };
    begun(service, out, &it.change, snapshots.purge_vm(request).await).await
}

/// `edit`.
pub(crate) async fn edit(service: &Service, out: &Out, it: Edit) -> Result<(), Failure> {
    let vm = lookup::vm(service, &it.chosen.vm).await?;
    let mut snapshot = lookup::snapshot(service, &vm, &it.chosen.snapshot).await?;
    let mut paths = Vec::new();
    if let Some(name) = it.name {
        snapshot.display_name = name;
        paths.push("display_name".to_owned());
    }
    if let Some(description) = it.description {
        snapshot.description = description;
        paths.push("description".to_owned());
    }
    if let Some(protect) = it.protect {
        snapshot.protected = protect;
        paths.push("protected".to_owned());
    }
    let request = v1::UpdateSnapshotRequest {
        snapshot: Some(snapshot),
        update_mask: Some(FieldMask { paths }),
        request_id: request_id(&it.change),
        validate_only: it.change.dry_run,
    };
    begun(service, out, &it.change, service.snapshots.clone().update_snapshot(request).await).await
}

fn request_id(change: &Change) -> String {
    change.request_id.clone().unwrap_or_else(|| Uuid::new_v4().to_string())
}

/// Shows what would be done and asks whether to do it; `false` where only the plan was wanted.
fn agreed(
    out: &Out,
    change: &Change,
    yes: bool,
    plan: Result<Response<v1::Operation>, Status>,
    question: &str,
) -> Result<bool, Failure> {
    let planned = plan?.into_inner();
    if change.dry_run {
        out.answer("Operation", &planned, as_plan)?;
        return Ok(false);
    }
    if !yes {
        out.aside(&as_plan(&planned));
    }
    confirm(out, yes, question)?;
    Ok(true)
}

fn as_plan(operation: &v1::Operation) -> String {
    show::plan(&operation.plan.clone().unwrap_or_default())
}

/// What follows on the service's first answer: nothing for a plan, or the wait for the end.
async fn begun(
    service: &Service,
    out: &Out,
    change: &Change,
    answer: Result<Response<v1::Operation>, Status>,
) -> Result<(), Failure> {
    let operation = answer?.into_inner();
    if change.dry_run {
        return out.answer("Operation", &operation, as_plan);
    }
    if change.no_wait {
        return out.answer("Operation", &operation, show::operation);
    }
    let ended = if follow::has_ended(&operation) {
        operation
    } else {
        follow::to_the_end(service, &operation.name, out).await?
    };
    follow::end(out, ended, show::operation)
}
