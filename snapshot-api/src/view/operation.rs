//! Operations.

use proto::convert::{duration_millis, timestamp_millis};
use proto::{names, v1};
use snapshot_core::operation::Request;

use crate::store::OperationRow;

/// An operation.
pub fn operation(row: &OperationRow) -> v1::Operation {
    let saved = match &row.request {
        Request::Revert { save_current: Some(create), .. } => names::snapshot(row.vm, &create.snapshot),
        _ => String::new(),
    };
    let millis = |millis: i64| duration_millis(u64::try_from(millis).unwrap_or(0));
    let mut wire = v1::Operation {
        name: names::operation(row.id),
        vm: names::vm(row.vm),
        snapshot: row.request.snapshot().map(|id| names::snapshot(row.vm, id)).unwrap_or_default(),
        progress: Some(v1::OperationProgress {
            phase: row.phase.clone(),
            percent: row.percent,
            bytes_done: row.bytes_done,
            bytes_total: row.bytes_total,
        }),
        error: row.error.as_ref().map(v1::OperationError::from),
        actor: row.actor.clone(),
        request_id: row.request_id.map(|id| id.to_string()).unwrap_or_default(),
        create_time: Some(timestamp_millis(row.create_time)),
        start_time: row.start_time.map(timestamp_millis),
        end_time: row.end_time.map(timestamp_millis),
        cancellable: row.cancellable && !row.state.is_ended(),
        pause: row.pause_ms.map(millis),
        predicted_pause: row.predicted_pause_ms.map(millis),
        saved_snapshot: saved,
        notes: row.notes.iter().map(v1::OperationNote::from).collect(),
        ..v1::Operation::default()
    };
    wire.set_kind(row.kind.into());
    wire.set_state(row.state.into());
    if let Some(method) = row.method {
        wire.set_method(method.into());
    }
    wire
}
