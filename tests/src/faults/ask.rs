//! Asking the service for a change as a careful caller does: under one request id, again after an answer was lost, and
//! followed until it has ended.

use std::time::{Duration, Instant};

use proto::v1;
use tonic::Code;

use super::judge::{Kind, Violation};
use super::model::End;
use super::script::{Manner, Step};
use super::world::{Phase, World};
use crate::client::{Client, OPERATIONS, Refusal};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How long an operation may take from the first attempt to its end, with faults all the while.
const STUCK: Duration = Duration::from_secs(240);
const AGAIN: Duration = Duration::from_millis(120);

/// A change to ask for.
#[derive(Debug, Clone)]
pub enum Change {
    /// CreateSnapshot.
    Create(v1::CreateSnapshotRequest),
    /// RevertToSnapshot.
    Revert(v1::RevertToSnapshotRequest),
    /// DeleteSnapshot.
    Delete(v1::DeleteSnapshotRequest),
    /// PurgeVm.
    Purge(v1::PurgeVmRequest),
    /// UpdateSnapshot.
    Update(v1::UpdateSnapshotRequest),
}

impl Change {
    async fn send(&self, client: &Client) -> Result<v1::Operation, Refusal> {
        match self.clone() {
            Self::Create(request) => client.create_as(request).await,
            Self::Revert(request) => client.revert_as(request).await,
            Self::Delete(request) => client.delete_as(request).await,
            Self::Purge(request) => client.purge(request).await,
            Self::Update(request) => client.update(request).await,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// How it ended, for the model.
    pub end: End,
    /// The operation, where one was told.
    pub operation: Option<v1::Operation>,
    /// The reason of a refusal.
    pub reason: String,
}

/// A caller over two faces.
pub struct Caller<'a> {
    /// The world.
    pub world: &'a World,
    /// The machine's number, if a lane drives it.
    pub machine: Option<usize>,
    /// Its name.
    pub name: &'a str,
    /// JSON.
    pub json: &'a Client,
    /// gRPC.
    pub grpc: &'a Client,
}

/// Whether the service said something, and not merely the way to it.
fn is_told(refusal: &Refusal) -> bool {
    !refusal.reason.is_empty()
}

/// Whether it may be otherwise in a moment.
fn is_passing(refusal: &Refusal) -> bool {
    matches!(refusal.code, Code::Unavailable | Code::Aborted | Code::ResourceExhausted)
        && refusal.reason != "SPACE_LOW"
        && refusal.reason != "SNAPSHOT_LIMIT"
}

impl Caller<'_> {
    /// Asks, and follows it to its end. `None` when the caller went away. A patient caller asks again when another
    /// operation is in the way.
    pub async fn ask(&self, step: &Step, change: &Change, patient: bool) -> Option<Answer> {
        let begun = Instant::now();
        let (mut first, mut other) = if step.json { (self.json, self.grpc) } else { (self.grpc, self.json) };
        let mut lost = false;
        let mut twice = step.manner == Manner::Twice;
        let operation = loop {
            let _ = self.world.phases.send(Phase::Dispatched(self.machine));
            let answered = if let Manner::Abandon(after) = step.manner {
                tokio::time::timeout(Duration::from_millis(after), change.send(first)).await.ok()?
            } else if std::mem::take(&mut twice) {
                self.send_twice(change, first, other).await
            } else {
                attempt(change, first).await
            };
            let refusal = match answered {
                Ok(operation) => break operation,
                Err(refusal) => refusal,
            };
            if begun.elapsed() > STUCK {
                self.violation(Kind::Stuck, format!("{change:?} is not answered: {refusal}"));
                return Some(Answer { end: End::Unknown, operation: None, reason: refusal.reason });
            }
            let waits = is_passing(&refusal) && (patient || refusal.reason != "VM_BUSY");
            if is_told(&refusal) && !waits {
                self.tell(&format!("refused: {} {}", refusal.reason, refusal.message));
                // A former attempt, whose answer was lost, may still be under way.
                let end = if lost { End::Unknown } else { End::Refused };
                return Some(Answer { end, operation: None, reason: refusal.reason });
            }
            lost |= !is_told(&refusal);
            std::mem::swap(&mut first, &mut other);
            tokio::time::sleep(AGAIN).await;
        };
        if let Manner::Cancelled(after) = step.manner {
            tokio::time::sleep(Duration::from_millis(after)).await;
            let request = v1::CancelOperationRequest { name: operation.name.clone() };
            let path = (OPERATIONS, "CancelOperation");
            let told = self.grpc.call::<_, v1::Operation>(path, &request);
            // It may be over, or not to be stopped; what it ends as is what counts.
            let told = tokio::time::timeout(ATTEMPT, told).await.map(|told| told.map(|operation| operation.state()));
            self.tell(&format!("asked for {} to be stopped: {told:?}", operation.name));
        }
        Some(self.follow(operation, begun).await)
    }

    async fn send_twice(&self, change: &Change, one: &Client, other: &Client) -> Result<v1::Operation, Refusal> {
        let (one, other) = tokio::join!(attempt(change, one), attempt(change, other));
        if let (Ok(one), Ok(other)) = (&one, &other)
            && one.name != other.name
        {
            let both = format!("one request id got {} and {}", one.name, other.name);
            self.violation(Kind::Disagree, both);
        }
        one.or(other)
    }

    /// Follows an operation by asking for it: a stream would end with every fault.
    async fn follow(&self, mut operation: v1::Operation, begun: Instant) -> Answer {
        loop {
            let (state, error) = (operation.state(), operation.error.clone().unwrap_or_default());
            match state {
                v1::OperationState::Succeeded => {
                    self.tell(&format!("{} succeeded", operation.name));
                    self.world.history.ended(&operation);
                    return Answer { end: End::Done, operation: Some(operation), reason: String::new() };
                }
                v1::OperationState::Failed | v1::OperationState::Cancelled => {
                    self.tell(&format!(
                        "{} {state:?}: {} {} {:?}",
                        operation.name, error.reason, error.message, error.metadata
                    ));
                    self.world.history.ended(&operation);
                    let end = End::Failed(error.message);
                    return Answer { end, operation: Some(operation), reason: error.reason };
                }
                v1::OperationState::Running => {
                    let _ = self.world.phases.send(Phase::Running(self.machine));
                }
                v1::OperationState::Pending | v1::OperationState::Unspecified => {}
            }
            if begun.elapsed() > STUCK {
                self.violation(Kind::Stuck, format!("{} is {state:?} after {STUCK:?}", operation.name));
                return Answer { end: End::Unknown, operation: Some(operation), reason: String::new() };
            }
            tokio::time::sleep(AGAIN).await;
            let asked = tokio::time::timeout(ATTEMPT, self.grpc.operation(&operation.name)).await;
            match asked {
                Ok(Ok(now)) => operation = now,
                Ok(Err(refusal)) if refusal.code == Code::NotFound => {
                    self.violation(Kind::Lost, format!("{} was answered and is not known: {refusal}", operation.name));
                    return Answer { end: End::Unknown, operation: Some(operation), reason: String::new() };
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    fn tell(&self, what: &str) {
        self.world.history.tell(self.name, what);
    }

    fn violation(&self, kind: Kind, what: String) {
        self.world.history.violated(vec![Violation { kind, machine: self.name.to_owned(), what }]);
    }
}

async fn attempt(change: &Change, client: &Client) -> Result<v1::Operation, Refusal> {
    match tokio::time::timeout(ATTEMPT, change.send(client)).await {
        Ok(answered) => answered,
        Err(_) => Err(Refusal::lost(format!("no answer within {ATTEMPT:?}"))),
    }
}
