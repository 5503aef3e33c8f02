//! GetSnapshot: one snapshot.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::Action;

use crate::app::{App, Call};
use crate::view;

pub fn call(app: &App, call: Call<v1::GetSnapshotRequest>) -> Result<v1::Snapshot, Error> {
    let (vm, id) = names::parse_snapshot("name", &call.message.name)?;
    call.authorize(vm, Action::Read)?;
    app.store.vm(vm)?;
    Ok(view::snapshot(app.store.epoch(), &app.store.snapshot(vm, &id)?))
}
