//! DeleteOrphan: deletes an orphan and the state that it holds, for an administrator who was shown what that is.
//!
//! 1. The host makes all checks and tells what would be deleted. A refusal ends here, and nothing is changed.
//! 2. That is written into the audit trail, as an intent. Where it cannot be written, nothing is deleted.
//! 3. The host makes the checks anew, by the caller's own token, and deletes.
//! 4. What came of it is written into the trail. When contact is lost in 3 that is a failure of which the outcome is not known: the next
//!    listing tells.
//!
//! 2 to 4 are finished whatever becomes of the caller.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::audit::{Event, Outcome, Source, clean};
use snapshot_core::ids::OrphanId;
use tracing::Instrument as _;

use super::get_host::find_host;
use crate::agents::Agent;
use crate::app::{App, Call};

pub async fn call(app: &App, call: Call<v1::DeleteOrphanRequest>) -> Result<v1::Orphan, Error> {
    call.authorize_admin()?;
    let v1::DeleteOrphanRequest { name, etag, validate_only } = &call.message;
    let (host, id) = names::parse_orphan("name", name)?;
    call.trail.detail(&format!("orphan {id}"));
    if etag.is_empty() {
        return Err(Error::invalid("etag", "is required: what was shown is what is deleted"));
    }
    if *validate_only {
        call.trail.planned();
    }
    let agent = find_host(app, &host)?;
    let shown = agent.delete_orphan(&call.token, &call.request_id, id, etag, true).await?;
    if let Ok(vm) = names::parse_vm("vm", &shown.vm) {
        call.trail.about(vm);
    }
    if *validate_only {
        return Ok(shown);
    }
    delete(app, agent.clone(), &call, id, shown).await
}

/// In a task of its own: a caller that goes away must not leave an intent without an end.
async fn delete<T>(
    app: &App,
    agent: Agent,
    call: &Call<T>,
    id: OrphanId,
    shown: v1::Orphan,
) -> Result<v1::Orphan, Error> {
    let (app, token, request_id, trail) =
        (app.clone(), call.token.clone(), call.request_id.clone(), call.trail.clone());
    let task = async move {
        let host = names::host(agent.host());
        let source = |outcome| match outcome {
            Outcome::Accepted => trail.source(),
            _ => Source { peer: host.clone(), ..trail.source() },
        };
        let event = |outcome, reason: &str| Event {
            vm: names::parse_vm("vm", &shown.vm).ok(),
            snapshot: shown.snapshot.rsplit('/').next().map(clean).unwrap_or_default(),
            reason: reason.to_owned(),
            detail: clean(&format!("orphan {id}, {} bytes: {}", shown.allocation_bytes, shown.path)),
            ..Event::new(app.clock.now_ms(), source(outcome), outcome)
        };
        app.store.record_synced(event(Outcome::Accepted, "")).await?;
        trail.recorded();
        let deleted = agent.delete_orphan(&token, &request_id, id, &shown.etag, false).await;
        let end = match &deleted {
            Ok(_) => event(Outcome::Succeeded, ""),
            Err(error) => event(Outcome::Failed, error.reason().as_str()),
        };
        if app.store.record_synced(end.clone()).await.is_err() {
            app.audit.tell(end);
        }
        deleted
    };
    match tokio::spawn(task.in_current_span()).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(snapshot_core::Reason::Internal, format!("the deletion failed: {error}"))),
    }
}
