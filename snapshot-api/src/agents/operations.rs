//! Operations on a host: handed over, followed to their end, and found again after any loss of contact.
//!
//! 1. A [`Claim`] says that this process looks after an operation. It is taken before the intent is written, so that
//!    the recovery at a reconnect leaves the operation alone.
//! 2. `start` hands the operation over. The agent refuses it (the operation ends FAILED and the caller gets the
//!    reason), or accepts it, or contact is lost and nobody knows.
//! 3. In the last two cases a task of its own follows it. As long as the stream lives it writes down what it says.
//! 4. When the stream breaks, the task asks the host again by the operation's id until it answers: with the rest of the
//!    story, or with NOT_FOUND, which means that nothing was ever done, nor will be. It asks by the service's own token: the
//!    caller's may have ended.
//!
//! What cannot be written down because the catalogue fails, for instance on a full disk, is not lost: the host is asked
//! again, and tells it again.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use proto::agent::operation_event::{Accepted, Ended, Event};
use proto::agent::{AttachOperationRequest, CancelOperationRequest, OperationEvent};
use proto::agent::{PlanOperationRequest, StartOperationRequest};
use proto::convert::{Inventory, Spec};
use proto::v1;
use snapshot_core::ids::OperationId;
use snapshot_core::operation::{Note, OperationState, Outcome};
use snapshot_core::{Error, Reason};
use tonic::{Code, Request, Status};

use super::{ANSWER, Agent, CATALOGUE_AGAIN, unreachable};
use crate::store::{Ending, OperationRow, Progress, StoreError};

/// How long to wait before asking a host again about an operation.
const AGAIN: Duration = Duration::from_millis(500);

type Events = Pin<Box<dyn Stream<Item = Result<Option<OperationEvent>, Status>> + Send>>;

/// Says that this process looks after an operation, until it is dropped.
pub struct Claim {
    id: OperationId,
    claims: Arc<Mutex<HashSet<OperationId>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// What the agent said when an operation was handed over.
enum Answer {
    Accepted(Accepted, Events),
    Refused(Status),
    /// It may have been accepted and the answer lost: only the host knows.
    Unknown,
}

/// A request by this token.
pub(super) fn request<T>(token: &str, request_id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Ok(value) = format!("Bearer {token}").parse() {
        request.metadata_mut().insert("authorization", value);
    }
    if let Ok(value) = request_id.parse() {
        request.metadata_mut().insert("x-request-id", value);
    }
    traces::inject(request.metadata_mut().as_mut());
    request
}

/// The token does not count, whatever is asked with it.
pub(super) fn is_refusal_of_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated
}

fn lost(status: &Status) -> bool {
    // An agent that is stopping or whose libvirt is away refuses with a reason of ours: that is an answer.
    mtls::client::contact_lost(status)
        || (status.code() == Code::Unavailable && proto::status::reason(status).is_none())
}

/// The host has never taken the operation on. Any other NOT_FOUND, such as one of a proxy, says nothing about it.
fn is_unknown(status: &Status) -> bool {
    status.code() == Code::NotFound && proto::status::reason(status) == Some(Reason::OperationNotFound)
}

impl Agent {
    /// Claims an operation for this process; `None` when it is claimed already.
    pub fn claim(&self, id: OperationId) -> Option<Claim> {
        let fresh = self.claims.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        fresh.then(|| Claim { id, claims: self.claims.clone() })
    }

    /// What an operation would do.
    pub async fn plan(&self, token: &str, request_id: &str, spec: &Spec) -> Result<v1::OperationPlan, Error> {
        let message = PlanOperationRequest { spec: Some(spec.into()) };
        let mut client = self.client.clone();
        let call = client.plan_operation(request(token, request_id, message));
        Ok(self.answer(call).await?.plan.unwrap_or_default())
    }

    /// Asks for an operation to be stopped, for whom the token is of.
    pub async fn cancel(&self, token: &str, request_id: &str, id: OperationId) -> Result<(), Error> {
        self.check_reachable()?;
        let message = CancelOperationRequest { operation_id: id.to_string() };
        let mut client = self.client.clone();
        self.answer(client.cancel_operation(request(token, request_id, message))).await.map(|_| ())
    }

    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(ANSWER, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) if lost(&status) => Err(unreachable(&self.host, status.message())),
            Ok(Err(status)) => Err(proto::status::from_status(&status, Reason::HostProtocol)),
            Err(_) => Err(unreachable(&self.host, "it did not answer in time")),
        }
    }

    /// Hands an operation over. Returns its row once it is accepted or contact is lost, or the refusal.
    pub async fn start(&self, claim: Claim, token: &str, request_id: &str, spec: &Spec) -> Result<OperationRow, Error> {
        let id = spec.operation;
        match self.hand_over(token, request_id, spec).await {
            Answer::Accepted(accepted, events) => {
                let row = self.store.accept(id, accepted.cancellable, self.clock.now_ms()).await;
                self.spawn_follow(claim, Some(events));
                // The host has it, whether that could be written down or not.
                Ok(row.or_else(|_| self.store.operation(id))?)
            }
            Answer::Refused(status) => {
                let refusal = proto::status::from_status(&status, Reason::HostProtocol);
                self.end_refused(claim, &refusal).await;
                Err(refusal.with("operation", proto::names::operation(id)))
            }
            Answer::Unknown => {
                self.spawn_follow(claim, None);
                Ok(self.store.operation(id)?)
            }
        }
    }

    /// Writes down that nothing was done. Where that fails it is tried again later: until then the machine counts as busy.
    async fn end_refused(&self, claim: Claim, refusal: &Error) {
        let Err(error) = self.end(claim.id, Ending::failed(refusal.clone())).await else { return };
        tracing::warn!(operation = %claim.id, %error, "a refusal could not be written down; trying again");
        let (agent, refusal) = (self.clone(), refusal.clone());
        tokio::spawn(async move {
            let write = async { while agent.end_later(claim.id, &refusal).await.is_err() {} };
            tokio::select! {
                () = agent.stopping.cancelled() => {}
                () = write => {}
            }
        });
    }

    async fn end_later(&self, id: OperationId, refusal: &Error) -> Result<OperationRow, StoreError> {
        tokio::time::sleep(CATALOGUE_AGAIN).await;
        self.end(id, Ending::failed(refusal.clone())).await
    }

    async fn hand_over(&self, token: &str, request_id: &str, spec: &Spec) -> Answer {
        let message = StartOperationRequest { spec: Some(spec.into()) };
        let mut client = self.client.clone();
        let call = client.start_operation(request(token, request_id, message));
        let mut events: Events = match tokio::time::timeout(ANSWER, call).await {
            Ok(Ok(answer)) => Box::pin(answer.into_inner().map(|message| message.map(|message| message.event))),
            Ok(Err(status)) if lost(&status) => return Answer::Unknown,
            Ok(Err(status)) => return Answer::Refused(status),
            Err(_) => return Answer::Unknown,
        };
        match tokio::time::timeout(ANSWER, events.next()).await {
            Ok(Some(Ok(Some(OperationEvent { event: Some(Event::Accepted(accepted)) })))) => {
                Answer::Accepted(accepted, events)
            }
            Ok(Some(Err(status))) if !lost(&status) => Answer::Refused(status),
            _ => Answer::Unknown,
        }
    }

    /// Follows again what the catalogue believes to run on the host.
    pub(super) fn recover(&self) -> Result<(), StoreError> {
        for row in self.store.active_operations(&self.host)? {
            if let Some(claim) = self.claim(row.id) {
                tracing::info!(operation = %row.id, host = %self.host, "following the operation again");
                self.spawn_follow(claim, None);
            }
        }
        Ok(())
    }

    fn spawn_follow(&self, claim: Claim, events: Option<Events>) {
        let agent = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = agent.stopping.cancelled() => {}
                () = agent.follow_operation(claim.id, events) => {}
            }
        });
    }

    /// Writes down what happens to an operation until it has ended.
    async fn follow_operation(&self, id: OperationId, mut events: Option<Events>) {
        loop {
            if let Some(stream) = events.take() {
                match self.write_events(id, stream).await {
                    Ok(true) => return,
                    Ok(false) => tokio::time::sleep(AGAIN).await,
                    Err(error) => {
                        tracing::warn!(operation = %id, %error, "the operation could not be written down; asking again");
                        tokio::time::sleep(CATALOGUE_AGAIN).await;
                    }
                }
            }
            match tokio::time::timeout(ANSWER, self.attach(id)).await {
                Ok(Ok(found)) => events = Some(found),
                Ok(Err(status)) if is_unknown(&status) && self.settle_unknown(id).await => return,
                Ok(Err(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// What the host tells of an operation that it was given before.
    async fn attach(&self, id: OperationId) -> Result<Events, Status> {
        let token = self.own.reading().map_err(|error| proto::status::to_status(&error))?;
        let message = AttachOperationRequest { operation_id: id.to_string() };
        let mut client = self.client.clone();
        let attached = client.attach_operation(request(token.as_str(), "", message)).await;
        if attached.as_ref().is_err_and(is_refusal_of_token) {
            self.own.refused(&token);
        }
        Ok(Box::pin(attached?.into_inner().map(|message| message.map(|message| message.event))))
    }

    /// Returns whether the operation has ended.
    async fn write_events(&self, id: OperationId, mut events: Events) -> Result<bool, StoreError> {
        while let Some(message) = events.next().await {
            let Ok(Some(OperationEvent { event: Some(event) })) = message else { return Ok(false) };
            match event {
                Event::Accepted(accepted) => {
                    self.store.accept(id, accepted.cancellable, self.clock.now_ms()).await?;
                }
                Event::Progress(progress) => {
                    let progress = Progress {
                        phase: progress.phase,
                        percent: progress.percent.clamp(0, 100),
                        bytes_done: progress.bytes_done,
                        bytes_total: progress.bytes_total,
                    };
                    self.store.progress(id, progress).await?;
                }
                Event::Ended(ended) => {
                    self.end(id, ending(ended)).await?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn end(&self, id: OperationId, ending: Ending) -> Result<OperationRow, StoreError> {
        let row = self.store.end(id, ending, self.clock.now_ms()).await?;
        let labels = [("kind", format!("{:?}", row.kind)), ("state", format!("{:?}", row.state))];
        metrics::counter!("snapshot_api_operations_ended_total", &labels).increment(1);
        Ok(row)
    }

    /// The host has never heard of the operation, so nothing was done. Returns whether that could be written down.
    async fn settle_unknown(&self, id: OperationId) -> bool {
        let error = match self.store.operation(id).map(|row| row.state) {
            Ok(OperationState::Pending) => Error::new(
                Reason::AuthorizationExpired,
                "contact with the host was lost before it took the operation on; nothing was done",
            ),
            Ok(OperationState::Running) => Error::new(
                Reason::Interrupted,
                "the host has lost its record of the operation; the list of snapshots shows what it has",
            ),
            Ok(OperationState::Succeeded | OperationState::Failed | OperationState::Cancelled) => return true,
            Err(_) => return false,
        };
        self.end(id, Ending::failed(error)).await.is_ok()
    }
}

fn ending(ended: Ended) -> Ending {
    let outcome: Option<Outcome> = ended.state().into();
    let method = ended.method().into();
    let pause_ms = ended.pause.as_ref().map(proto::convert::millis);
    let predicted_pause_ms = ended.predicted_pause.as_ref().map(proto::convert::millis);
    let error = ended.error.as_ref().map(Error::from);
    let notes = ended.notes.into_iter().map(Note::from).collect();
    let inventory = ended.inventory.map(Inventory::try_from).transpose().unwrap_or_else(|error| {
        tracing::error!(%error, "the machine after the operation was told in a way that makes no sense");
        None
    });
    match outcome {
        Some(outcome) => Ending { outcome, error, method, pause_ms, predicted_pause_ms, notes, inventory },
        None => Ending { inventory, ..Ending::failed(Error::new(Reason::HostProtocol, "an end without an outcome")) },
    }
}
