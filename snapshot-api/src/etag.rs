//! Etags (AIP-154) and resume tokens: opaque to the caller, `{epoch}-{revision}` to us.
//!
//! The epoch names the catalogue file, so that what was read from a lost catalogue never fits the one rebuilt after it.

use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::{Error, Reason};

/// The text for a revision.
pub fn encode(epoch: &str, revision: i64) -> String {
    format!("{epoch}-{revision}")
}

/// The revision in a text of this catalogue; `None` for any other text.
pub fn decode(epoch: &str, text: &str) -> Option<i64> {
    text.strip_prefix(epoch)?.strip_prefix('-')?.parse().ok()
}

/// The refusal of a request that was made of something older.
pub fn mismatch(vm: VmId, snapshot: &SnapshotId) -> Error {
    let name = proto::names::snapshot(vm, snapshot);
    Error::new(Reason::EtagMismatch, format!("{name} was changed since its etag was read")).with("snapshot", name)
}

/// The label revision that a request's etag demands; `None` when it demands none.
pub fn expected(epoch: &str, etag: &str, vm: VmId, snapshot: &SnapshotId) -> Result<Option<i64>, Error> {
    if etag.is_empty() {
        return Ok(None);
    }
    decode(epoch, etag).map(Some).ok_or_else(|| mismatch(vm, snapshot))
}
