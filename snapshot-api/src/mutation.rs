//! The life of a mutation, the same for all of them:
//!
//! 1. find the machine and refuse when its host cannot be reached: nothing is queued. A purge also finds a machine that is
//!    gone, by the host that told what it left;
//! 2. `validate_only`: ask the agent for its plan, by the machine as it is now, and answer with that;
//! 3. find a replay, by the actor and the request id;
//! 4. write the intent and its event in the audit trail, which the catalogue refuses while another operation runs on the machine,
//!    or when the user's quota is used up;
//! 5. hand it to the agent, which checks the token and the live machine itself, and journals it before it acts;
//! 6. answer with the operation. Its outcome is written down when the agent tells it.
//!
//! The permit is an argument, so none of this can be reached without an authorization.

use proto::convert::Spec;
use proto::{names, v1};
use snapshot_core::authority::Permit;
use snapshot_core::ids::{OperationId, RequestId, VmId};
use snapshot_core::operation::Request;
use snapshot_core::{Error, Reason};
use tracing::Instrument as _;

use crate::agents::{Agent, Claim};
use crate::app::{App, Call};
use crate::store::{Begun, NewOperation, OperationRow};
use crate::view::host::Remembered;
use crate::{etag, view};

/// What a mutation was asked with, besides what it does.
pub struct Options<'a> {
    /// The idempotency key, as it came.
    pub request_id: &'a str,
    /// Whether there must be one: where a repeat would destroy something.
    pub request_id_required: bool,
    /// Whether to answer with the plan and do nothing.
    pub validate_only: bool,
    /// The snapshot's etag as it came; empty for none.
    pub etag: &'a str,
    /// What makes two requests the same one: everything that the caller sent, less what we made of it.
    pub fingerprint: String,
}

/// Carries a request out, up to its acceptance.
pub async fn mutate<T>(
    app: &App,
    call: &Call<T>,
    permit: Permit,
    options: Options<'_>,
    request: Request,
) -> Result<v1::Operation, Error> {
    let vm = permit.vm();
    if let Some(first) = replayed(app, call, &permit, &options)? {
        return Ok(first);
    }
    let request_id = parse_request_id(&options)?;
    if options.validate_only {
        call.trail.planned();
    }
    let actor = permit.actor().to_string();
    let agent = route(app, vm, &request)?;
    agent.check_reachable()?;
    if let Some(snapshot) = target(&request) {
        app.store.snapshot(vm, snapshot)?;
    }
    let expected_label = match request.snapshot() {
        Some(snapshot) => etag::expected(app.store.epoch(), options.etag, vm, snapshot)?,
        None => None,
    };
    let id = OperationId::from_uuid(uuid::Uuid::now_v7());
    let spec = Spec { operation: id, vm, request };
    if options.validate_only {
        app.store.check_quota(vm, &actor, app.user_quota, &spec.request)?;
        let plan = agent.plan(&call.token, &call.request_id, &spec).await?;
        return Ok(planned(&spec, actor, plan));
    }
    leave_room(app, &agent, &actor)?;
    let claim = agent.claim(id).ok_or_else(|| Error::new(snapshot_core::Reason::Internal, "an operation id twice"))?;
    let new = NewOperation {
        id,
        vm,
        host: agent.host().clone(),
        request: spec.request.clone(),
        actor,
        source: call.trail.source(),
        quota: app.user_quota,
        request_id,
        fingerprint: options.fingerprint,
        expected_label,
        now_ms: app.clock.now_ms(),
    };
    let row = begin_and_start(app, agent, claim, call, new, spec).await?;
    Ok(view::operation(&row))
}

/// The host that has to carry it out.
fn route(app: &App, vm: VmId, request: &Request) -> Result<Agent, Error> {
    match (app.store.vm(vm).map_err(Error::from), request) {
        (Ok(row), _) => match view::conflict(&row) {
            Some(conflict) => Err(conflict),
            None => app.agent(&row.host),
        },
        (Err(error), Request::Purge { .. }) if error.reason() == Reason::VmNotFound => {
            left_behind(app, vm)?.ok_or(error)
        }
        (Err(error), _) => Err(error),
    }
}

/// The host that has something of a machine that is gone: as it says, or as it said last.
fn left_behind(app: &App, vm: VmId) -> Result<Option<Agent>, Error> {
    for agent in app.hosts.all().values() {
        let remembered = match agent.state().facts {
            Some(facts) => Remembered::from(&facts),
            None => app.store.host(agent.host())?.map(|(facts, _)| Remembered::from_json(&facts)).unwrap_or_default(),
        };
        if remembered.has_left_behind(vm) {
            return Ok(Some(agent.clone()));
        }
    }
    Ok(None)
}

/// The operation of an earlier, equal request. Whoever has to read the snapshot to know what is asked looks here before,
/// because the snapshot may be gone by now.
pub fn replayed<T>(
    app: &App,
    call: &Call<T>,
    permit: &Permit,
    options: &Options<'_>,
) -> Result<Option<v1::Operation>, Error> {
    let request_id = parse_request_id(options)?;
    if options.validate_only {
        return Ok(None);
    }
    let first = app.store.replayed(&permit.actor().to_string(), request_id, &options.fingerprint)?;
    Ok(first.as_ref().map(|row| {
        call.trail.replayed(row.id);
        view::operation(row)
    }))
}

/// Writes the intent and hands the operation over, in a task of its own: a caller that goes away, be it while the intent is
/// being written, must not leave one that nobody follows.
async fn begin_and_start<T>(
    app: &App,
    agent: Agent,
    claim: Claim,
    call: &Call<T>,
    new: NewOperation,
    spec: Spec,
) -> Result<OperationRow, Error> {
    let (store, token, request_id) = (app.store.clone(), call.token.clone(), call.request_id.clone());
    let trail = call.trail.clone();
    let task = async move {
        if let Begun::Replay(first) = store.begin(new).await? {
            trail.replayed(first.id);
            return Ok(*first);
        }
        trail.recorded();
        traces::about(&spec.operation, &spec.vm);
        tracing::info!(operation = %spec.operation, vm = %spec.vm, kind = ?spec.request.kind(), "recorded, asking the host");
        agent.start(claim, &token, &request_id, &spec).await
    };
    match tokio::spawn(task.in_current_span()).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(snapshot_core::Reason::Internal, format!("the hand-over failed: {error}"))),
    }
}

/// Refuses when the user has as many operations on the host as one user may: its places are few, and all users' machines
/// share them. Two that come at the same moment may both pass; the agent has a bound of its own.
fn leave_room(app: &App, agent: &Agent, actor: &str) -> Result<(), Error> {
    let running = app.store.active_operations(agent.host())?.iter().filter(|row| row.actor == actor).count();
    if running < app.limits.operations_per_host() {
        return Ok(());
    }
    let message =
        format!("{running} operations of this user run on the host, which is the most one user may have there");
    Err(Error::new(Reason::HostBusy, message).with("limit", app.limits.operations_per_host().to_string()))
}

/// The snapshot that must exist already.
fn target(request: &Request) -> Option<&snapshot_core::ids::SnapshotId> {
    match request {
        Request::Create(_) | Request::Purge { .. } => None,
        Request::Update { snapshot, .. } | Request::Revert { snapshot, .. } | Request::Delete { snapshot, .. } => {
            Some(snapshot)
        }
    }
}

fn parse_request_id(options: &Options<'_>) -> Result<Option<RequestId>, Error> {
    if options.request_id.is_empty() {
        return if options.request_id_required && !options.validate_only {
            Err(Error::invalid("request_id", "is required, so that a repeat destroys nothing twice"))
        } else {
            Ok(None)
        };
    }
    options.request_id.parse().map(Some).map_err(|error| Error::invalid("request_id", error))
}

/// A text that is the same for equal requests: what the caller sent, with its own parts left out by the caller of this.
/// It is kept in the catalogue, so it must stay the same from one version to the next.
pub fn fingerprint(method: &str, message: &impl prost::Message) -> String {
    let digest = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &message.encode_to_vec());
    format!("{method}:{}", digest.simple())
}

/// The answer to a `validate_only` request: an operation without a name, which nothing records.
fn planned(spec: &Spec, actor: String, plan: v1::OperationPlan) -> v1::Operation {
    let mut wire = v1::Operation {
        vm: names::vm(spec.vm),
        snapshot: target(&spec.request).map(|id| names::snapshot(spec.vm, id)).unwrap_or_default(),
        actor,
        plan: Some(plan),
        ..v1::Operation::default()
    };
    wire.set_kind(spec.request.kind().into());
    wire
}
