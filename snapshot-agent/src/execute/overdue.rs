//! The bound on how long anybody waits for an operation that does not get on.
//!
//! libvirt may be away for hours, and a call to it hangs as long as a guest's QEMU does. Nobody can tell then what becomes of
//! the operation, and nothing is gained by not saying so. So after a time without any progress those who follow it are told that
//! it failed. The operation itself goes on: it keeps its machine, and when libvirt answers it finishes or takes back what it
//! has begun, and the machine is free again.

use std::pin::pin;
use std::time::Duration;

use snapshot_core::{Error, Reason};

use super::operation::{Operation, Phase};

/// Waits for the work on an operation, and gives the operation up when it is silent for this long.
pub(super) async fn bounded<T>(operation: &Operation, silence: Duration, work: impl Future<Output = T>) -> T {
    let (mut work, mut phases) = (pin!(work), operation.follow());
    loop {
        tokio::select! {
            done = &mut work => return done,
            moved = tokio::time::timeout(silence, phases.changed()) => {
                let is_running = matches!(operation.phase(), Phase::Running { .. });
                if moved.is_err() && is_running {
                    tracing::error!(operation = %operation.id(), ?silence, "given up; it goes on when libvirt answers");
                    operation.give_up(overdue(operation, silence));
                }
            }
        }
    }
}

fn overdue(operation: &Operation, silence: Duration) -> Error {
    let message = format!(
        "libvirt has not answered for {} s, and this is no longer waited for; what was begun is finished or taken back when \
         it answers, and until then nothing else is done to the machine",
        silence.as_secs()
    );
    Error::new(Reason::HypervisorUnavailable, message).with("vm", proto::names::vm(operation.vm()))
}
