//! ListSnapshots: the snapshots of a machine, oldest first.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::Action;

use crate::app::{App, Call};
use crate::page::Page;
use crate::view;

pub fn call(app: &App, call: Call<v1::ListSnapshotsRequest>) -> Result<v1::ListSnapshotsResponse, Error> {
    let request = &call.message;
    let vm = names::parse_vm("parent", &request.parent)?;
    call.authorize(vm, Action::Read)?;
    let page = Page::parse(request.page_size, &request.page_token, ("ListSnapshots", vm))?;
    app.store.vm(vm)?;
    let mut rows = app.store.snapshots(vm, page.after()?.unwrap_or(0), page.fetch())?;
    let next_page_token = page.cut(&mut rows, |row| row.seq.to_string());
    let snapshots = rows.iter().map(|row| view::snapshot(app.store.epoch(), row)).collect();
    Ok(v1::ListSnapshotsResponse { snapshots, next_page_token })
}
