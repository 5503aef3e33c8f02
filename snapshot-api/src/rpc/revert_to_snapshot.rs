//! RevertToSnapshot: takes a machine back to a snapshot.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::Action;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{Create, Request};
use snapshot_core::text::{DISPLAY_NAME_MAX_CHARS, Description, DisplayName};

use crate::app::{App, Call};
use crate::mutation::{Options, fingerprint, mutate, replayed};

pub async fn call(app: &App, call: Call<v1::RevertToSnapshotRequest>) -> Result<v1::Operation, Error> {
    let request = &call.message;
    let (vm, id) = names::parse_snapshot("name", &request.name)?;
    let permit = call.authorize(vm, Action::Revert)?;
    let run_after =
        v1::RunAfter::try_from(request.run_after).map_err(|_| Error::invalid("run_after", "is not known"))?;
    let same = v1::RevertToSnapshotRequest { request_id: String::new(), validate_only: false, ..request.clone() };
    let options = Options {
        request_id: &request.request_id,
        request_id_required: true,
        validate_only: request.validate_only,
        etag: &request.etag,
        fingerprint: fingerprint("RevertToSnapshot", &same),
    };
    if let Some(first) = replayed(app, &call, &permit, &options)? {
        return Ok(first);
    }
    let save_current = if request.save_current {
        call.authorize(vm, Action::Create)?;
        app.store.vm(vm)?;
        let target = app.store.snapshot(vm, &id)?.facts.label.display_name;
        Some(present(&request.save_current_display_name, &target)?)
    } else {
        None
    };
    let revert = Request::Revert { snapshot: id, run_after: run_after.into(), save_current };
    mutate(app, &call, permit, options, revert).await
}

/// The snapshot of the present that comes first.
fn present(wanted: &str, target: &DisplayName) -> Result<Create, Error> {
    let display_name = if wanted.is_empty() {
        let name = format!("Before the return to {target}");
        DisplayName::parse(&name.chars().take(DISPLAY_NAME_MAX_CHARS).collect::<String>())?
    } else {
        DisplayName::parse(wanted)?
    };
    Ok(Create {
        snapshot: SnapshotId::from_uuid(uuid::Uuid::now_v7()),
        display_name,
        description: Description::default(),
        protected: false,
        content: None,
        storage: None,
        quiesce: false,
        allow_crash_consistent: false,
    })
}
