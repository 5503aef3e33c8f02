//! Images as administrators read and write them: with `qemu-img` and `qemu-io`, and with nothing that is under test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};

use super::content::{Content, SLOT_BYTES, filling};
use crate::images;
use crate::tools::run;

/// Bytes of a new disk.
const DISK: &str = "512k";
/// Where a qcow2 header says where the backing file's name is, and how long that is.
const BACKING_OFFSET: usize = 8;
const BACKING_LENGTH: usize = 16;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file of ours that is removed with it.
struct Temporary(PathBuf);

impl Temporary {
    fn new(scratch: &Path) -> Self {
        Self(scratch.join(format!("read-{}", NEXT.fetch_add(1, Ordering::Relaxed))))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What a guest would read from an image, or from a snapshot inside it. It takes no lock.
pub fn read(scratch: &Path, image: &Path, tag: Option<&str>) -> Result<Content> {
    let raw = Temporary::new(scratch);
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-U", "-f", "qcow2", "-O", "raw"]);
    if let Some(tag) = tag {
        command.arg("-l").arg(format!("snapshot.name={tag}"));
    }
    run(command.arg(image).arg(&raw.0))?;
    Content::parse(&fs::read(&raw.0)?).with_context(|| format!("{} {tag:?}", image.display()))
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is on the disk.
    Done,
    /// Nothing was written: somebody else has the image open, or it is not there.
    Refused(String),
    /// Nobody knows.
    Unknown(String),
}

/// Writes a number into a cluster, as a guest does.
pub fn write(scratch: &Path, image: &Path, slot: usize, number: u32) -> Result<Written> {
    let source = Temporary::new(scratch);
    fs::write(&source.0, filling(number))?;
    let command = format!("write -s {} {} {SLOT_BYTES}", source.0.display(), slot * SLOT_BYTES);
    let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", &command]).arg(image).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(match output.status.success() && said.contains("wrote ") {
        true => Written::Done,
        false if said.contains("can't open") => Written::Refused(said),
        false => Written::Unknown(said),
    })
}

/// Makes an empty image.
pub fn create(image: &Path) -> Result<()> {
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(image).arg(DISK)).map(drop)
}

/// The names of the snapshots inside an image.
pub fn tags(image: &Path) -> Result<Vec<String>> {
    images::internal_snapshots(image)
}

/// The backing file that an image's header names.
pub fn backing(image: &Path) -> Result<Option<PathBuf>> {
    let mut header = vec![0; 4096];
    let length = File::open(image)?.read(&mut header)?;
    header.truncate(length);
    if !header.starts_with(b"QFI\xfb") {
        return Ok(None);
    }
    let number = |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let (high, low) = (number(BACKING_OFFSET), number(BACKING_OFFSET + 4));
    let (Some(0), Some(offset), Some(length)) = (high, low, number(BACKING_LENGTH)) else {
        bail!("{} has no header", image.display());
    };
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    let (from, length) = (usize::try_from(offset)?, usize::try_from(length)?);
    let name = header.get(from..from + length).with_context(|| format!("{}'s backing file", image.display()))?;
    let name = PathBuf::from(String::from_utf8(name.to_vec())?);
    Ok(Some(image.parent().unwrap_or(Path::new("/")).join(name)))
}

/// The images of directories, each with its backing file.
pub fn all(directories: &[PathBuf]) -> BTreeMap<PathBuf, Option<PathBuf>> {
    let mut found = BTreeMap::new();
    for directory in directories {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            // One that goes away between two looks has no backing file.
            if path.is_file()
                && let Ok(below) = backing(&path)
            {
                found.insert(path, below);
            }
        }
    }
    found
}

/// The images that others have as a backing file: whoever writes to one of them changes those.
pub fn bases(directories: &[PathBuf]) -> BTreeSet<PathBuf> {
    all(directories).into_values().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_by_what_is_below_them() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        create(&at("base")).unwrap();
        assert_eq!(write(directory.path(), &at("base"), 3, 9).unwrap(), Written::Done);
        run(Command::new("qemu-img").args(["snapshot", "-c", "\u{fc} 0"]).arg(at("base"))).unwrap();
        let mut clone = Command::new("qemu-img");
        clone.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(at("base")).arg(at("clone"));
        run(&mut clone).unwrap();
        assert_eq!(write(directory.path(), &at("clone"), 0, 8).unwrap(), Written::Done);
        let base = Content::default().with(3, 9);
        assert_eq!(read(directory.path(), &at("clone"), None).unwrap(), base.with(0, 8));
        assert_eq!(read(directory.path(), &at("base"), Some("\u{fc} 0")).unwrap(), base);
        assert_eq!(tags(&at("base")).unwrap(), ["\u{fc} 0"]);
        assert_eq!(bases(&[directory.path().to_owned()]), [at("base")].into());
        let gone = write(directory.path(), &at("gone"), 0, 1).unwrap();
        assert!(matches!(gone, Written::Refused(_)), "{gone:?}");
    }
}
