//! CancelOperation: asks for an operation to be stopped and undone.

use proto::{names, v1};
use snapshot_core::authority::authorize_cancel;
use snapshot_core::{Error, Reason};

use super::get_operation::visible;
use crate::app::{App, Call};
use crate::view;

pub async fn call(app: &App, call: Call<v1::CancelOperationRequest>) -> Result<v1::Operation, Error> {
    let id = names::parse_operation("name", &call.message.name)?;
    let row = visible(app, &call, id)?;
    // Who may start something may stop it; the agent decides it in the same way, by the same token.
    authorize_cancel(&call.caller, row.vm, row.kind).map_err(|denied| denied.about(row.vm))?;
    if row.state.is_ended() {
        return Ok(view::operation(&row));
    }
    if !row.cancellable {
        return Err(Error::new(Reason::NotCancellable, "the operation can no longer be stopped")
            .with("operation", names::operation(id)));
    }
    app.agent(&row.host)?.cancel(&call.token, &call.request_id, id).await?;
    Ok(view::operation(&app.store.operation(id)?))
}
