//! The files that external snapshots are made of, as they lie on the host.
//!
//! Chains are followed by what the images themselves say. A format is believed only where it is told, by a definition or
//! by the image above: the first bytes of a raw image are the guest's to write.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{Layer, Layers, Parts};

use super::images::{Found, Images};
use super::snapshot_xml::Recorded;
use crate::bounded::files::{self, resolved};
use crate::qcow2;

/// What libvirt writes at the beginning of a running state that is complete.
const COMPLETE: &[u8] = b"LibvirtQemudSave";
/// The longest chain that is followed.
const MOST_LAYERS: usize = 2000;

pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Images {
    /// Adds a file and all that it lies on; returns the name it goes by.
    pub(super) fn follow(&mut self, layers: &mut Layers, path: &Path, format: &str) -> String {
        let (mut spelled, mut format) = (path.to_owned(), format.to_owned());
        let first = text(&resolved(path));
        for _ in 0..MOST_LAYERS {
            let path = resolved(&spelled);
            let name = text(&path);
            if layers.files.contains_key(&name) {
                break;
            }
            let mut layer = Layer { spelled: text(&spelled), format: format.clone(), ..Layer::default() };
            let mut below = None;
            if format == "qcow2" {
                match self.read(&path) {
                    Found::Image(image) => {
                        layer.bytes = image.allocation_bytes;
                        layer.pinned = !image.tags.is_empty();
                        below.clone_from(&image.backing);
                    }
                    Found::Gone(_) => layer.pinned = true,
                    Found::Unknown(_) => layers.unreadable = Some(name.clone()),
                }
            } else {
                layer.bytes = files::metadata(&path).map(|metadata| metadata.len()).unwrap_or_default();
            }
            let next = below.map(|backing| (beside(&path, &backing.name), backing.format));
            if let Some((below, told)) = &next {
                layer.backing = below.as_deref().map(|below| text(&resolved(below)));
                layer.pinned |= below.is_none() || told.is_none();
            }
            layers.files.insert(name, layer);
            match next {
                Some((Some(below), Some(told))) => (spelled, format) = (below, told),
                // It is reached, and not believed to be anything.
                Some((Some(below), None)) => (spelled, format) = (below, "unknown".to_owned()),
                Some((None, _)) | None => break,
            }
        }
        first
    }

    /// Whether a file of an external snapshot is gone, or its running state was not written to its end.
    pub(super) fn has_lost_files(&mut self, recorded: &Recorded) -> bool {
        let mut layers = Layers::default();
        for (path, format) in recorded.files.frozen.values() {
            let top = self.follow(&mut layers, path, format);
            if layers.chain(&top).any(|path| matches!(files::try_exists(Path::new(path)), Ok(false))) {
                return true;
            }
        }
        recorded.files.memory.as_deref().is_some_and(|path| !is_complete(path))
    }
}

/// A backing file as an image names it; `None` for what is no path.
fn beside(image: &Path, name: &str) -> Option<PathBuf> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let scheme = name.split_once(':').map(|(scheme, _)| scheme);
    if scheme.is_some_and(|scheme| !scheme.is_empty() && !scheme.contains('/')) {
        return None;
    }
    Some(image.parent()?.join(name))
}

/// Whether a running state was written to its end; one that cannot be read now is taken to be.
fn is_complete(path: &Path) -> bool {
    let mut start = [0; COMPLETE.len()];
    match files::with(path, || qcow2::open(path)?.read_exact(&mut start)) {
        Ok(()) => start == COMPLETE,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof),
    }
}

/// A machine's files: its disks (target, path, format), those of the definition that the next start uses, and its
/// external snapshots.
pub(super) fn layers<'a>(
    images: &mut Images,
    live: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>,
    next_start: impl IntoIterator<Item = (PathBuf, String)>,
    recorded: &BTreeMap<String, Recorded>,
    current: Option<&str>,
) -> Layers {
    let mut layers = Layers::default();
    for (target, path, format) in live.into_iter().filter(|(_, path, _)| path.starts_with('/')) {
        let path = images.follow(&mut layers, Path::new(path), format);
        layers.live.insert(target.to_owned(), path);
    }
    for (path, format) in next_start {
        let path = images.follow(&mut layers, &path, &format);
        if !layers.live.values().any(|live| *live == path) {
            layers.kept.insert(path);
        }
    }
    for one in recorded.values().filter(|one| one.storage == snapshot_core::snapshot::Storage::External) {
        let id = SnapshotId::of_name(&one.name);
        let follow =
            |layers: &mut Layers, (target, (path, format)): (&String, &(PathBuf, String)), images: &mut Images| {
                (target.clone(), images.follow(layers, path, format))
            };
        let frozen = one.files.frozen.iter().map(|file| follow(&mut layers, file, images)).collect();
        // libvirt makes no overlays but these.
        let overlay = |layers: &mut Layers, path: &Path, images: &mut Images| match files::try_exists(path) {
            Ok(false) => text(&resolved(path)),
            _ => images.follow(layers, path, "qcow2"),
        };
        let overlays = one.files.overlays.iter();
        let overlays = overlays.map(|(target, path)| (target.clone(), overlay(&mut layers, path, images))).collect();
        let parts = Parts {
            parent: one.parent.as_deref().map(SnapshotId::of_name),
            is_current: current == Some(one.name.as_str()),
            deleted: one.deleted,
            frozen,
            overlays,
            memory_file: one.files.memory.as_deref().map(|path| text(&resolved(path))),
        };
        layers.snapshots.insert(id, parts);
    }
    layers
}

/// Takes the deleted snapshots out of what is listed: their children go to their parents, and so does the mark of the
/// current one, as if libvirt had deleted them already.
pub(super) fn without_deleted(
    recorded: &BTreeMap<String, Recorded>,
    current: Option<String>,
) -> (Vec<Recorded>, Option<String>) {
    let staying = |mut name: Option<String>| {
        for _ in 0..=recorded.len() {
            match name.as_ref().and_then(|name| recorded.get(name)) {
                Some(one) if one.deleted => name.clone_from(&one.parent),
                _ => break,
            }
        }
        name
    };
    let listed = recorded.values().filter(|one| !one.deleted);
    let listed = listed.map(|one| Recorded { parent: staying(one.parent.clone()), ..one.clone() });
    (listed.collect(), staying(current))
}

#[cfg(test)]
mod tests;
