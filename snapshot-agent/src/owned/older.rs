//! What an older agent wrote down, read by this one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use snapshot_core::ids::SnapshotId;

use super::Tags;
use crate::qcow2::Stamp;

/// The snapshots in each image: before their times were written down, a list of them.
pub(super) fn images<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Tags, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Held {
        Stamped(BTreeMap<SnapshotId, Option<Stamp>>),
        Listed(BTreeSet<SnapshotId>),
    }
    let images = BTreeMap::<PathBuf, Held>::deserialize(deserializer)?;
    let stamped = images.into_iter().map(|(path, held)| match held {
        Held::Stamped(held) => (path, held),
        Held::Listed(ids) => (path, ids.into_iter().map(|id| (id, None)).collect()),
    });
    Ok(stamped.collect())
}
