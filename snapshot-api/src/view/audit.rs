//! Events of the audit trail.

use proto::convert::timestamp_millis;
use proto::{names, v1};
use snapshot_core::audit::hex;

use crate::store::AuditRow;

/// An event.
pub fn audit_event(row: &AuditRow) -> v1::AuditEvent {
    let event = &row.event;
    let source = &event.source;
    let vm = event.vm.map(names::vm).unwrap_or_default();
    let named = |kind: &str, id: &str| if id.is_empty() { String::new() } else { format!("{kind}{id}") };
    let mut wire = v1::AuditEvent {
        sequence: row.sequence,
        hash: hex(&row.hash),
        time: Some(timestamp_millis(event.time_ms)),
        reason: event.reason.clone(),
        actor: if source.issuer.is_empty() {
            source.subject.clone()
        } else {
            format!("{}/{}", source.issuer, source.subject)
        },
        token_id: source.token_id.clone(),
        peer: source.peer.clone(),
        method: source.method.clone(),
        request_id: source.request_id.clone(),
        snapshot: named(&format!("{vm}/snapshots/"), &event.snapshot),
        operation: named("operations/", &event.operation),
        vm,
        count: i32::try_from(event.count).unwrap_or(i32::MAX),
        detail: event.detail.clone(),
        ..v1::AuditEvent::default()
    };
    wire.set_outcome(event.outcome.into());
    wire
}
