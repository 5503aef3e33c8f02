//! GetOperation: one operation.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::Action;
use snapshot_core::ids::OperationId;

use crate::app::{App, Call};
use crate::store::OperationRow;
use crate::view;

pub fn call(app: &App, call: Call<v1::GetOperationRequest>) -> Result<v1::Operation, Error> {
    let id = names::parse_operation("name", &call.message.name)?;
    Ok(view::operation(&visible(app, &call, id)?))
}

/// The operation, if the caller may read its machine; for any other the answer is that of one that does not exist.
pub fn visible<T>(app: &App, call: &Call<T>, id: OperationId) -> Result<OperationRow, Error> {
    let row = app.store.operation(id)?;
    match call.authorize(row.vm, Action::Read) {
        Ok(_) => Ok(row),
        Err(_) => Err(crate::store::operation_not_found(id)),
    }
}
