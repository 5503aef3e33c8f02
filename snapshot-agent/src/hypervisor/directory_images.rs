//! The images in directories, and the files that each of them depends on, however that is written in it. Some belong to no VM that is
//! defined here: copies, clones that are not defined yet, images of other hosts on shared storage.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::beyond::depends_on;
use crate::bounded::files::{self, resolved};

/// The most files that are looked at. Where there are more, it is not known what depends on what.
const MOST_FILES: usize = 100_000;

/// By image, the files that it depends on, itself included; of those alone that depend on others. Of `whole` directories those in them
/// are looked through, too. Devices are not. Paths are without links.
pub(crate) fn dependencies(
    directories: &BTreeSet<PathBuf>,
    whole: &BTreeSet<PathBuf>,
) -> Result<BTreeMap<PathBuf, BTreeSet<PathBuf>>, (PathBuf, io::Error)> {
    let whole = whole.iter().map(|directory| (resolved(directory), true));
    let alone = directories.iter().map(|directory| (resolved(directory), false));
    // The last is taken first: one that is both is looked through whole.
    let mut next: Vec<(PathBuf, bool)> = alone.chain(whole).collect();
    let (mut seen, mut found, mut count) = (BTreeSet::new(), BTreeMap::new(), 0_usize);
    while let Some((directory, is_whole)) = next.pop() {
        if directory.starts_with("/dev") || !seen.insert(directory.clone()) {
            continue;
        }
        let entries = match files::read_dir(&directory) {
            Ok(entries) => entries,
            // Its images are not there either; a file system that is not mounted here has none that are used here.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err((directory, error)),
        };
        for entry in entries {
            let path = entry.map_err(|error| (directory.clone(), error))?.path();
            count += 1;
            if count > MOST_FILES {
                return Err((directory, io::Error::other(format!("there are more than {MOST_FILES} files"))));
            }
            let kind = match files::symlink_metadata(&path) {
                Ok(found) => found.file_type(),
                Err(error) if error.kind() == ErrorKind::TimedOut => return Err((path, error)),
                Err(_) => continue,
            };
            if kind.is_dir() {
                next.extend(is_whole.then_some((path, true)));
            } else if let Some((image, below)) = image(&path)? {
                found.insert(image, below);
            }
        }
    }
    Ok(found)
}

/// An image with the files that it depends on.
type Dependent = (PathBuf, BTreeSet<PathBuf>);

/// An image that depends on others. Another name of a file is that file.
fn image(path: &Path) -> Result<Option<Dependent>, (PathBuf, io::Error)> {
    let of = |error: io::Error| (path.to_owned(), error);
    let path = match files::canonicalize(path) {
        Ok(path) => path,
        Err(error) if error.kind() == ErrorKind::TimedOut => return Err(of(error)),
        Err(_) => return Ok(None),
    };
    match files::metadata(&path) {
        Ok(found) if found.is_file() => {}
        Err(error) if error.kind() == ErrorKind::TimedOut => return Err(of(error)),
        Ok(_) | Err(_) => return Ok(None),
    }
    let below = depends_on(&path, "");
    // What is below one that cannot be opened, itself included, is not known.
    for file in &below {
        match files::with(file, || crate::qcow2::open(file)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err((file.clone(), error)),
            Ok(_) | Err(_) => {}
        }
    }
    Ok((below.len() > 1).then_some((path, below)))
}
