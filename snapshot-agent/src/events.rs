//! The phases of an operation as the events of a stream.
//!
//! The first is always `accepted`, the last always `ended`; in between comes the progress there is when the stream is
//! ready for it. An operation that is refused while it is followed ends the stream with the refusal.

use std::sync::Arc;
use std::time::Duration;

use proto::agent::operation_event::{Accepted, Ended, Event};
use proto::agent::{OperationEvent, VmInventory};
use proto::convert::duration_millis;
use proto::v1;
use snapshot_core::ids::VmId;
use snapshot_core::{Error, Reason};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::auth;
use crate::execute::operation::{Operation, Phase, Progress};
use crate::journal;
use crate::machines::Machines;

/// How long an end waits for a machine to be seen for the first time.
const FIRST_LOOK: Duration = Duration::from_secs(15);

/// Events that wait for a slow reader.
const WAITING: usize = 4;

/// Follows an operation that was taken on until its end, until the token does by which it is followed, or until the process is to
/// end.
pub fn follow<T: Send + 'static>(
    operation: Arc<Operation>,
    machines: Arc<Machines>,
    stopping: CancellationToken,
    until: Option<Instant>,
    wrap: fn(OperationEvent) -> T,
) -> ReceiverStream<Result<T, Status>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let send = async |event| sender.send(Ok(wrap(OperationEvent { event: Some(event) }))).await.is_ok();
        let mut phases = operation.follow();
        let mut accepted = false;
        loop {
            let phase = phases.borrow_and_update().clone();
            if let (false, Phase::Running { cancellable, .. } | Phase::Ended { cancellable, .. }) = (accepted, &phase) {
                accepted = true;
                if !send(Event::Accepted(Accepted { cancellable: *cancellable })).await {
                    return;
                }
            }
            match phase {
                Phase::Running { progress, .. } if progress != Progress::default() => {
                    if !send(Event::Progress(to_wire(progress))).await {
                        return;
                    }
                }
                Phase::Ended { ended, seen, .. } => {
                    let inventory = match seen {
                        true => machine_after(&machines, operation.vm()).await,
                        false => None,
                    };
                    send(Event::Ended(end(&ended, inventory))).await;
                    return;
                }
                // It was attached to before that was decided. Nothing more will come.
                Phase::Refused(refusal) => {
                    let _ = sender.send(Err(proto::status::to_status(&refusal))).await;
                    return;
                }
                Phase::Accepting | Phase::Running { .. } => {}
            }
            tokio::select! {
                changed = phases.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
                () = ended(until) => {
                    let _ = sender.send(Err(proto::status::to_status(&auth::expired()))).await;
                    return;
                }
                () = stopping.cancelled() => {
                    let _ = sender.send(Err(proto::status::to_status(&shutting_down()))).await;
                    return;
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn ended(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// The machine after an operation. A process that began after the operation has ended may not have seen it yet, and an
/// end without it would read as if a snapshot that was taken were not there; so it waits for its first look.
async fn machine_after(machines: &Machines, vm: VmId) -> Option<VmInventory> {
    if machines.get(vm).is_none() {
        let mut synced = machines.synced();
        // The sender lives as long as the machines do. When it takes too long, the machine is told as soon as it is seen.
        let _ = timeout(FIRST_LOOK, synced.wait_for(|synced| *synced)).await;
    }
    machines.get(vm).map(|inventory| VmInventory::from(&*inventory))
}

/// What a caller is told whose stream ends because the process does.
pub fn shutting_down() -> Error {
    Error::new(Reason::ShuttingDown, "the agent is stopping")
}

fn to_wire(progress: Progress) -> v1::OperationProgress {
    v1::OperationProgress { phase: progress.phase, percent: progress.percent.into(), bytes_done: 0, bytes_total: 0 }
}

fn end(ended: &journal::Ended, inventory: Option<VmInventory>) -> Ended {
    let mut wire = Ended {
        error: ended.error.as_ref().map(v1::OperationError::from),
        inventory,
        pause: ended.pause_ms.map(duration_millis),
        predicted_pause: ended.predicted_pause_ms.map(duration_millis),
        notes: ended.notes.iter().map(v1::OperationNote::from).collect(),
        ..Ended::default()
    };
    wire.set_state(ended.outcome.into());
    wire.set_method(ended.method.map_or(v1::OperationMethod::Unspecified, Into::into));
    wire
}
