//! A WatchVm that stays open, and what a page would make of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use proto::v1;
use proto::v1::watch_vm_response::Event;
use tonic::Streaming;

use super::{Call, Grpc, Refusal, SNAPSHOTS};

/// How long a change may take to be told.
const TOLD: Duration = Duration::from_secs(60);

/// An open WatchVm. Dropping it breaks it off, as a caller that goes away does.
pub struct VmWatch {
    stream: Streaming<Vec<u8>>,
    resume_token: String,
}

impl VmWatch {
    /// Opens it; an empty `resume_token` asks for the whole state.
    pub async fn open(face: &Grpc, token: &str, vm: &str, resume_token: &str) -> Result<Self, Refusal> {
        let request = v1::WatchVmRequest { name: vm.to_owned(), resume_token: resume_token.to_owned() };
        let request = request.encode_to_vec();
        let call = Call { service: SNAPSHOTS, method: "WatchVm", request: &request, token, request_id: "" };
        Ok(Self { stream: face.open(call).await?, resume_token: resume_token.to_owned() })
    }

    /// The next message. That none comes in time is an error, and so is the end of the stream, with its [`Refusal`].
    pub async fn next(&mut self) -> Result<Event> {
        let message = tokio::time::timeout(TOLD, self.stream.message()).await;
        let message = message.with_context(|| format!("nothing was told for {TOLD:?}"))?.map_err(Refusal::from)?;
        let answer = v1::WatchVmResponse::decode(message.context("the watch ended")?.as_slice())?;
        if !answer.resume_token.is_empty() {
            self.resume_token = answer.resume_token;
        }
        answer.event.context("a message that tells nothing")
    }

    /// Every message up to the first that `last` takes, with that one.
    pub async fn until(&mut self, what: &str, mut last: impl FnMut(&Event) -> bool) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await.with_context(|| format!("waiting for {what} after {events:?}"))?;
            events.push(event);
            if events.last().is_some_and(&mut last) {
                return Ok(events);
            }
        }
    }

    /// Where another watch can go on.
    pub fn resume_token(&self) -> &str {
        &self.resume_token
    }
}

/// What a client that knows nothing but the events believes to be there.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Mirror {
    /// The machine.
    pub vm: Option<v1::Vm>,
    /// The snapshots, by name.
    pub snapshots: BTreeMap<String, v1::Snapshot>,
    /// The operations, by name.
    pub operations: BTreeMap<String, v1::Operation>,
}

impl Mirror {
    /// Takes events in. It is an error when an operation goes back, or when something unknown is removed.
    pub fn apply(&mut self, events: &[Event]) -> Result<()> {
        for event in events {
            match event {
                Event::Reset(_) => *self = Self::default(),
                Event::Vm(vm) => self.vm = Some(vm.clone()),
                Event::Snapshot(snapshot) => {
                    self.snapshots.insert(snapshot.name.clone(), snapshot.clone());
                }
                Event::RemovedSnapshot(name) => {
                    // One that came and went while nobody watched is told as gone, too.
                    self.snapshots.remove(name);
                }
                Event::Operation(operation) => {
                    let before = self.operations.insert(operation.name.clone(), operation.clone());
                    let went_back = before.is_some_and(|before| before.state > operation.state);
                    ensure!(!went_back, "{} went back to {:?}", operation.name, operation.state());
                }
                Event::Synced(_) => {}
            }
        }
        Ok(())
    }
}
