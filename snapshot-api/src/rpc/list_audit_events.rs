//! ListAuditEvents: what was asked of the service, and by whom.

use proto::convert::unix_millis;
use proto::{names, v1};
use snapshot_core::Error;

use crate::app::{App, Call};
use crate::page::Page;
use crate::store::AuditFilter;
use crate::view;

pub fn call(app: &App, call: Call<v1::ListAuditEventsRequest>) -> Result<v1::ListAuditEventsResponse, Error> {
    call.authorize_admin()?;
    let request = &call.message;
    let millis = |field: &str, time| match time {
        None => Ok(None),
        Some(time) => unix_millis(time).map(Some).ok_or_else(|| Error::invalid(field, "is no time")),
    };
    let (from_ms, until_ms) = (millis("start_time", request.start_time)?, millis("end_time", request.end_time)?);
    let query = ("ListAuditEvents", &request.vm, &request.actor, from_ms, until_ms, request.oldest_first);
    let page = Page::parse(request.page_size, &request.page_token, query)?;
    let filter = AuditFilter {
        vm: match request.vm.as_str() {
            "" => None,
            name => Some(names::parse_vm("vm", name)?),
        },
        actor: (!request.actor.is_empty()).then(|| request.actor.clone()),
        from_ms,
        until_ms,
        oldest_first: request.oldest_first,
        beyond: page.after()?,
    };
    let found = app.store.audit_events(&filter, page.size)?;
    let next_page_token = found.next.map(|sequence| page.token(&sequence.to_string())).unwrap_or_default();
    Ok(v1::ListAuditEventsResponse { events: found.rows.iter().map(view::audit_event).collect(), next_page_token })
}
