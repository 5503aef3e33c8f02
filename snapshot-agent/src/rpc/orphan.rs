//! Orphans on the wire.

use std::path::Path;
use std::time::SystemTime;

use proto::{names, v1};
use snapshot_core::ids::HostId;

use crate::owned::Kind;
use crate::owned::orphans::Orphan;

pub(super) fn wire(host: &HostId, orphan: &Orphan) -> v1::Orphan {
    let known = &orphan.on_record;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let millis = |time: SystemTime| i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis()).ok();
    let timestamp = |time: Option<SystemTime>| time.and_then(millis).map(proto::convert::timestamp_millis);
    let refusal = orphan.refusal.as_ref();
    let mut wire = v1::Orphan {
        name: names::orphan(host, known.id),
        vm: names::vm(known.vm),
        vm_display_name: known.vm_name.clone(),
        vm_exists: known.vm_exists,
        snapshot: names::snapshot(known.vm, known.snapshot()),
        snapshot_display_name: known.snapshot_name.clone(),
        path: text(&known.path),
        backing_path: known.backing().map(text).unwrap_or_default(),
        allocation_bytes: bytes(orphan.allocation_bytes),
        capacity_bytes: bytes(orphan.capacity_bytes),
        create_time: timestamp(orphan.created),
        write_time: timestamp(orphan.written),
        deletable: refusal.is_none(),
        reason: refusal.map(|error| error.reason().as_str().to_owned()).unwrap_or_default(),
        message: refusal.map(|error| error.message().to_owned()).unwrap_or_default(),
        etag: orphan.etag.clone(),
        ..v1::Orphan::default()
    };
    wire.set_kind(match known.kind() {
        Kind::Overlay => v1::OrphanKind::Overlay,
        Kind::Memory => v1::OrphanKind::RunningState,
        Kind::Reverted => v1::OrphanKind::RevertOverlay,
    });
    wire.set_state(orphan.state.into());
    wire
}
