//! What a disk depends on in forms that this service takes no snapshots of: images of other formats with a backing file, backing files
//! named in JSON, and block devices over a file (a loop device, or a mapping over one).
//!
//! It is looked at only to know whose data a revert or a merge would change. So a dependency is believed wherever one may be: a file too
//! many makes an operation unavailable, a file too few loses somebody's data.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bounded::files::{self, resolved};
use crate::qcow2::{self, ImageError};

/// The most files of one chain that are looked at.
const MOST: usize = 256;
/// The most layers of block devices over each other.
const MOST_DEVICES: usize = 16;
/// The longest name of a backing file that QEMU takes.
const MOST_NAME: usize = 4096;
/// Where a VMDK image has its description, which QEMU writes into the first sectors.
const DESCRIPTION: u64 = 64 << 10;

/// The files that this one, used in this format, depends on, itself included; their paths are without links.
pub(super) fn depends_on(path: &Path, format: &str) -> BTreeSet<PathBuf> {
    depends_on_by(path, format, &backing_file).0
}

/// The same, where the name of the backing file of an image is read so; and whether all of them could be read.
pub(super) fn depends_on_by(
    path: &Path,
    format: &str,
    backing_file: &dyn Fn(&Path) -> io::Result<Option<String>>,
) -> (BTreeSet<PathBuf>, bool) {
    let (mut found, mut next) = (BTreeSet::new(), vec![(path.to_owned(), format == "raw")]);
    let mut all = true;
    while let Some((path, is_raw)) = next.pop() {
        let path = resolved(&path);
        if found.len() >= MOST || !found.insert(path.clone()) {
            continue;
        }
        let backing = if is_raw { Ok(None) } else { backing_file(&path) };
        all &= backing.is_ok();
        let beside = backing.ok().flatten().and_then(|name| Some(path.parent()?.join(name)));
        next.extend(beside.into_iter().chain(behind(&path)).map(|path| (path, false)));
    }
    (found, all)
}

/// A file with its format, where it may depend on others in such a form.
pub(super) fn start(path: &Path, format: &str) -> Option<(PathBuf, String)> {
    let may_depend = !matches!(format, "qcow2" | "raw") || path.starts_with("/dev");
    may_depend.then(|| (path.to_owned(), format.to_owned()))
}

/// The path of the backing file as it is written in an image of any format. A file that is not there has none.
fn backing_file(path: &Path) -> io::Result<Option<String>> {
    match qcow2::backing_file(path) {
        Ok(backing) => return Ok(backing),
        Err(ImageError::Io(error)) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(ImageError::Io(error)) => return Err(error),
        Err(ImageError::Format(_) | ImageError::Unsteady) => {}
    }
    let mut bytes = Vec::new();
    files::with(path, || qcow2::open(path)?.take(DESCRIPTION).read_to_end(&mut bytes))?;
    Ok(in_header(&bytes).and_then(|name| qcow2::local_path(&name)))
}

/// An image as it was read: its device and inode, its size in bytes, and when it was written and changed, in seconds and nanoseconds.
type Version = ([u64; 3], [(i64, i64); 2]);

/// The names of backing files that were read, by image.
static REMEMBERED: Mutex<BTreeMap<PathBuf, (Version, Option<String>)>> = Mutex::new(BTreeMap::new());
/// The most of them.
const MOST_REMEMBERED: usize = 200_000;
/// Seconds after which a file that is written again has another time.
const SETTLED: i64 = 2;

/// [`backing_file`] as it was read before, where the image was not changed since.
pub(super) fn remembered(path: &Path) -> io::Result<Option<String>> {
    let lock = || REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(version) = version(path) else { return backing_file(path) };
    if let Some((_, name)) = lock().get(path).filter(|(known, _)| *known == version) {
        return Ok(name.clone());
    }
    let name = backing_file(path)?;
    let mut remembered = lock();
    if remembered.len() >= MOST_REMEMBERED {
        remembered.clear();
    }
    remembered.insert(path.to_owned(), (version, name.clone()));
    Ok(name)
}

/// Which version of an image this is; `None` where that cannot be told, also of one that was changed just now.
fn version(path: &Path) -> Option<Version> {
    // What is written to a device changes nothing of its node.
    let found = files::metadata(path).ok().filter(Metadata::is_file)?;
    let times = [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs().cast_signed();
    let all_settled = times.iter().all(|(seconds, _)| is_settled(*seconds, now));
    all_settled.then_some(([found.dev(), found.ino(), found.size()], times))
}

/// Whether a file that is written again now has another time than this, both in seconds of the Unix epoch.
fn is_settled(time: i64, now: i64) -> bool {
    time.saturating_add(SETTLED) < now
}

/// In the first bytes of an image: QCOW version 1, QED or VMDK, as QEMU's docs/interop and block/qcow.c have them.
fn in_header(start: &[u8]) -> Option<String> {
    let bytes = |at: usize, count: usize| start.get(at..at.checked_add(count)?);
    let name = |at: usize, count: usize| Some(String::from_utf8_lossy(bytes(at, count.min(MOST_NAME))?).into_owned());
    let big = |at| Some(u32::from_be_bytes(bytes(at, 4)?.try_into().ok()?));
    let little = |at| Some(u32::from_le_bytes(bytes(at, 4)?.try_into().ok()?));
    let found = if start.starts_with(b"QFI\xfb") {
        // The offset has 64 bits, of which the upper are 0 wherever QEMU writes.
        name(big(12)? as usize, big(16)? as usize)
    } else if start.starts_with(b"QED\0") {
        name(little(56)? as usize, little(60)? as usize)
    } else {
        let text = String::from_utf8_lossy(start);
        let hint = text.split_once("parentFileNameHint=\"")?.1.split_once('"')?.0;
        Some(hint.to_owned())
    };
    found.filter(|name| !name.is_empty())
}

/// The files that a block device is over.
fn behind(path: &Path) -> Vec<PathBuf> {
    let number = |found: Metadata| found.file_type().is_block_device().then(|| found.rdev());
    in_sysfs(path, files::metadata(path).map(number)).map(|device| beneath_device(&device)).unwrap_or_default()
}

/// Where sysfs has a block device, by its number; `found` is that of the file at this path, `None` of one that is no block device.
fn in_sysfs(path: &Path, found: io::Result<Option<u64>>) -> Option<PathBuf> {
    match found {
        Ok(number) => number.map(|number| {
            PathBuf::from(format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number)))
        }),
        // The agent may not see the host's devices.
        Err(_) => {
            let name = path.strip_prefix("/dev").ok().and_then(Path::to_str).filter(|name| !name.contains('/'))?;
            Some(Path::new("/sys/class/block").join(name))
        }
    }
}

/// The files of loop devices that a block device is, or is over, as sysfs tells.
fn beneath_device(device: &Path) -> Vec<PathBuf> {
    let (mut found, mut next) = (Vec::new(), vec![device.to_owned()]);
    for _ in 0..MOST_DEVICES {
        let Some(device) = next.pop() else { break };
        let Ok(device) = files::canonicalize(&device) else { continue };
        // A partition is a directory in that of its device.
        for place in [Some(device.as_path()), device.parent()].into_iter().flatten() {
            if let Ok(file) = fs::read_to_string(place.join("loop/backing_file")) {
                let file = file.trim_end_matches('\n');
                found.push(PathBuf::from(file.strip_suffix(" (deleted)").unwrap_or(file)));
            }
        }
        let slaves = files::read_dir(&device.join("slaves")).into_iter().flatten().flatten();
        next.extend(slaves.map(|slave| slave.path()));
    }
    found
}

#[cfg(test)]
mod tests;
