//! GetOperation: one operation.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::visible_vms;
use snapshot_core::ids::OperationId;

use crate::app::{App, Call};
use crate::store::OperationRow;
use crate::view;

pub fn call(app: &App, call: Call<v1::GetOperationRequest>) -> Result<v1::Operation, Error> {
    let id = names::parse_operation("name", &call.message.name)?;
    Ok(view::operation(&visible(app, &call, id)?))
}

/// The operation, if the caller may read its machine. Any other is not found, in the catalogue already: its row is not read, so
/// that it takes no longer than one that does not exist.
pub fn visible<T>(app: &App, call: &Call<T>, id: OperationId) -> Result<OperationRow, Error> {
    call.trail.operation(id);
    Ok(app.store.visible_operation(id, &visible_vms(&call.caller))?)
}
