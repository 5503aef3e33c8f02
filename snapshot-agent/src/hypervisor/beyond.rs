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
    let is_settled = times.iter().all(|(seconds, _)| seconds.saturating_add(SETTLED) < now);
    is_settled.then_some(([found.dev(), found.ino(), found.size()], times))
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
    let at = match files::metadata(path) {
        Ok(device) if device.file_type().is_block_device() => {
            let number = device.rdev();
            format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number))
        }
        Ok(_) => return Vec::new(),
        // The agent may not see the host's devices.
        Err(_) => match path.strip_prefix("/dev").ok().and_then(Path::to_str) {
            Some(name) if !name.contains('/') => format!("/sys/class/block/{name}"),
            _ => return Vec::new(),
        },
    };
    let (mut found, mut next) = (Vec::new(), vec![PathBuf::from(at)]);
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
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn images_of_other_formats_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.qcow2");
        let image = |arguments: &[&str]| {
            let done =
                Command::new("qemu-img").arg("create").arg("-q").args(arguments).current_dir(dir.path()).status();
            assert!(done.unwrap().success(), "{arguments:?}");
        };
        image(&["-f", "qcow2", "base.qcow2", "1M"]);
        let base = base.canonicalize().unwrap();
        let json = format!(
            "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
            base.display()
        );
        for (format, backing) in
            [("qcow", "base.qcow2"), ("qed", "base.qcow2"), ("qcow2", "base.qcow2"), ("qcow2", json.as_str())]
        {
            image(&["-f", format, "-b", backing, "-F", "qcow2", "clone"]);
            let clone = dir.path().join("clone");
            assert!(depends_on(&clone, format).contains(&base), "{format} {backing}");
            // One that is over it, by a link and by the other format.
            image(&["-f", "qcow2", "-b", "clone", "-F", format, "above"]);
            assert!(depends_on(&dir.path().join("above"), "qcow2").contains(&base), "{format} {backing}");
        }
        // What a guest has written at the beginning of a raw image names nothing.
        let qcow = dir.path().join("clone");
        assert!(!depends_on(&qcow, "raw").contains(&base));
    }

    /// A revert that changes what an image depends on must not be allowed because of what it depended on before.
    #[test]
    fn an_image_that_was_changed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("clone");
        let qemu_img = |arguments: &[&str]| {
            assert!(Command::new("qemu-img").args(arguments).arg(&image).status().unwrap().success());
        };
        qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-o", "size=1M", "-F", "qcow2", "-b", "a"]);
        assert_eq!(version(&image), None, "it may be changed again without another time");
        assert_eq!(remembered(&image).unwrap().as_deref(), Some("a"));
        let begun = std::time::Instant::now();
        while version(&image).is_none() {
            assert!(begun.elapsed().as_secs() < 60, "a file that nobody writes to has settled");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert!(begun.elapsed().as_secs() + 1 >= SETTLED.unsigned_abs());
        for _ in 0..2 {
            assert_eq!(remembered(&image).unwrap().as_deref(), Some("a"));
        }
        let before = version(&image);
        qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "b"]);
        assert_eq!((version(&image), remembered(&image).unwrap().as_deref()), (None, Some("b")));
        while version(&image).is_none() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_ne!(version(&image), before);
        assert_eq!(remembered(&image).unwrap().as_deref(), Some("b"));
        assert_eq!(version(&dir.path().join("none")), None);
    }

    #[test]
    fn a_vmdk_names_its_parent() {
        let text = b"# Disk DescriptorFile\nversion=1\nparentFileNameHint=\"/images/base.vmdk\"\n";
        assert_eq!(in_header(text).as_deref(), Some("/images/base.vmdk"));
        assert_eq!(in_header(b"# Disk DescriptorFile\nparentFileNameHint=\"\"\n"), None);
        assert_eq!(in_header(b"QED\0"), None);
    }
}
