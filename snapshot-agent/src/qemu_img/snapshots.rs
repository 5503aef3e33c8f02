//! Snapshots inside an image that no QEMU has open. The format is said and not guessed from content that a guest may have written.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{command, run};
use crate::beneath::Beneath;
use crate::bounded::files;
use crate::qcow2::{self, ImageError};

/// How long one of these may take. They write metadata only, which is some megabytes for a disk of a terabyte.
const WITHIN: Duration = Duration::from_secs(600);
/// The most images in a chain; QEMU itself opens no more than 200.
const LONGEST_CHAIN: usize = 256;

/// Takes a snapshot. The image is opened for writing with all that is below it, as libvirt does for a revert: one that is locked,
/// marked as corrupt, immutable or without its backing file is refused.
pub(crate) fn create(folders: &Beneath, image: &Path, name: &str) -> io::Result<()> {
    let chain = chain(image)?;
    let below: Vec<String> = chain.iter().flatten().map(|path| path.to_string_lossy().into_owned()).collect();
    // What is below it and in no file of this host cannot be opened from here, and a snapshot has no need of it.
    act(folders, "-c", image, name, chain.is_some(), &below.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Goes back to a snapshot. What is below the image is not opened: it may be gone, and is not changed.
pub(crate) fn apply(folders: &Beneath, image: &Path, name: &str) -> io::Result<()> {
    act(folders, "-a", image, name, false, &[])
}

/// Deletes a snapshot. What is below the image is not opened.
pub(crate) fn delete(folders: &Beneath, image: &Path, name: &str) -> io::Result<()> {
    act(folders, "-d", image, name, false, &[])
}

/// Checks what can be told of an image without opening it for writing: that it is neither immutable nor on a read-only file
/// system, and that everything below it is there.
pub(crate) fn check(image: &Path) -> io::Result<()> {
    chain(image)?;
    rustix::fs::access(image, rustix::fs::Access::WRITE_OK)
        .map_err(|error| io::Error::other(format!("{} cannot be written: {error}", image.display())))
}

fn act(folders: &Beneath, what: &str, image: &Path, name: &str, chain: bool, read: &[&str]) -> io::Result<()> {
    let driver = if image.starts_with("/dev") { "host_device" } else { "file" };
    let mut node = json!({ "driver": "qcow2", "file": { "driver": driver, "filename": image } });
    if !chain && let Some(node) = node.as_object_mut() {
        node.insert("backing".to_owned(), Value::Null);
    }
    let mut command = command();
    command.args(["snapshot", "-q", what, name, &format!("json:{node}")]);
    run(folders, command, &[&image.to_string_lossy()], read, WITHIN)
}

/// The files below an image; `None` where one of them is no file of this host.
fn chain(image: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let (mut below, mut top) = (Vec::new(), image.to_owned());
    while below.len() < LONGEST_CHAIN {
        let read = match qcow2::read(&top) {
            Ok(read) => read,
            // Not a qcow2 image: nothing is below it.
            Err(ImageError::Format(_)) if !below.is_empty() => return Ok(Some(below)),
            Err(ImageError::Io(error)) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", top.display())));
            }
            Err(error) => return Err(io::Error::other(format!("{}: {error}", top.display()))),
        };
        let Some(backing) = read.backing else { return Ok(Some(below)) };
        let Some(path) = qcow2::local_path(&backing.name) else { return Ok(None) };
        let Some(folder) = top.parent() else { return Ok(None) };
        top = folder.join(path);
        below.push(top.clone());
        if backing.format.as_deref().is_some_and(|format| format != "qcow2") {
            files::try_exists(&top)?.then_some(()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("{}: it does not exist", top.display()))
            })?;
            return Ok(Some(below));
        }
    }
    Err(io::Error::other(format!("{}: more than {LONGEST_CHAIN} files are below it", image.display())))
}
