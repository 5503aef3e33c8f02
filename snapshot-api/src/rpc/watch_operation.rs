//! WatchOperation: the operation as it is, then at every change, until it has ended.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::ids::OperationId;

use super::get_operation::visible;
use crate::app::{App, Call};
use crate::store::{Change, OperationRow};
use crate::view;
use crate::watch::{End, Messages, Watch};

pub fn call(app: &App, call: Call<v1::WatchOperationRequest>) -> Result<Messages<v1::WatchOperationResponse>, Error> {
    let id = names::parse_operation("name", &call.message.name)?;
    // Subscribed before the first read, so that no change falls in between.
    let (mut watch, messages) = Watch::new(app, &call.caller)?;
    let row = visible(app, &call, id)?;
    let app = app.clone();
    tokio::spawn(async move {
        let Err(end) = run(&app, &mut watch, id, row).await;
        watch.finish(end).await;
    });
    Ok(messages)
}

async fn run(
    app: &App,
    watch: &mut Watch<v1::WatchOperationResponse>,
    id: OperationId,
    mut row: OperationRow,
) -> Result<std::convert::Infallible, End> {
    let mut sent = None;
    loop {
        let operation = view::operation(&row);
        if sent.as_ref() != Some(&operation) {
            watch.send(v1::WatchOperationResponse { operation: Some(operation.clone()) }).await?;
            sent = Some(operation);
        }
        if row.state.is_ended() {
            return Err(End::Done);
        }
        watch.changed(|change| *change == Change::Vm(row.vm)).await?;
        row = app.store.operation(id).map_err(|error| End::Failed(error.into()))?;
    }
}
