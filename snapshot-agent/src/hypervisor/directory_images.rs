//! The images in directories, and the files that each of them depends on, however that is written in it. Some belong to no VM that is
//! defined here: copies, clones that are not defined yet, images of other hosts on shared storage.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::beyond::{self, depends_on};
use crate::bounded::files::{self, resolved};

/// The most files that are looked at. Where there are more, it is not known what depends on what.
const MOST_FILES: usize = 100_000;

/// By image, the files that it depends on, itself included; of those alone that depend on others. Paths are without links.
pub(crate) type Dependencies = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

/// What could not be looked at, and why.
type Problem = (PathBuf, io::Error);

/// What images in directories depend on. Of `whole` directories those in them are looked through, too. Devices are not. An error where
/// anything that may matter cannot be read.
pub(crate) fn dependencies(
    directories: &BTreeSet<PathBuf>,
    whole: &BTreeSet<PathBuf>,
) -> Result<Dependencies, Problem> {
    let whole = whole.iter().map(|directory| (resolved(directory), true));
    let alone = directories.iter().map(|directory| (resolved(directory), false));
    let mut found = Dependencies::new();
    // The last is taken first: one that is both is looked through whole.
    walk(alone.chain(whole).collect(), &mut |file| {
        let Some(path) = actual(&file?)? else { return Ok(()) };
        let below = depends_on(&path, "");
        // What is below one that cannot be opened, itself included, is not known.
        for file in &below {
            match files::with(file, || crate::qcow2::open(file)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err((file.clone(), error)),
                Ok(_) | Err(_) => {}
            }
        }
        if below.len() > 1 {
            found.insert(path, below);
        }
        Ok(())
    })?;
    Ok(found)
}

/// What a directory could be found to hold.
#[derive(Debug, Default)]
pub(crate) struct Readable {
    /// What its images depend on.
    pub(crate) images: Dependencies,
    /// What could not be read: images, and directories in it.
    pub(crate) unread: BTreeSet<PathBuf>,
    /// Of those, the directories that respond and cannot be listed, each with why.
    pub(crate) unlisted: BTreeMap<PathBuf, String>,
}

/// The same for one directory, as far as it can be read. Each file is read again only where it has changed.
pub(crate) fn readable_dependencies(directory: &Path, is_whole: bool) -> Result<Readable, Problem> {
    let mut found = Readable::default();
    let root = resolved(directory);
    walk(vec![(root.clone(), is_whole)], &mut |file| {
        if let Err((path, error)) = &file
            && error.kind() != ErrorKind::TimedOut
        {
            found.unlisted.insert(path.clone(), error.to_string());
        }
        match file.and_then(|path| actual(&path)) {
            Ok(Some(path)) => {
                let (below, all) = beyond::depends_on_by(&path, "", &beyond::remembered);
                if !all {
                    found.unread.insert(path.clone());
                }
                if below.len() > 1 {
                    found.images.insert(path, below);
                }
            }
            Ok(None) => {}
            Err((path, error)) if path == root || error.kind() == ErrorKind::FileTooLarge => {
                return Err((path, error));
            }
            Err((path, _)) => _ = found.unread.insert(path),
        }
        Ok(())
    })?;
    Ok(found)
}

/// Goes through the files of directories, and of those in them where they are to be looked through whole. What cannot be listed is told
/// as well.
fn walk(
    next: Vec<(PathBuf, bool)>,
    each: &mut dyn FnMut(Result<PathBuf, Problem>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    walk_at_most(MOST_FILES, next, each)
}

fn walk_at_most(
    most: usize,
    mut next: Vec<(PathBuf, bool)>,
    each: &mut dyn FnMut(Result<PathBuf, Problem>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let (mut seen, mut count) = (BTreeSet::new(), 0_usize);
    while let Some((directory, is_whole)) = next.pop() {
        if directory.starts_with("/dev") || !seen.insert(directory.clone()) {
            continue;
        }
        let entries = match files::read_dir(&directory) {
            Ok(entries) => entries,
            // Its images are not there either; a file system that is not mounted here has none that are used here.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                each(Err((directory, error)))?;
                continue;
            }
        };
        for entry in entries {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    each(Err((directory.clone(), error)))?;
                    continue;
                }
            };
            count += 1;
            if count > most {
                let message = format!("there are more than {most} files");
                return each(Err((directory, io::Error::new(ErrorKind::FileTooLarge, message))));
            }
            match files::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => next.extend(is_whole.then_some((path, true))),
                Ok(_) => each(Ok(path))?,
                Err(error) if error.kind() == ErrorKind::TimedOut => each(Err((path, error)))?,
                Err(_) => {}
            }
        }
    }
    Ok(())
}

/// The file that has this name, without links: another name of a file is that file. `None` where it is none.
fn actual(path: &Path) -> Result<Option<PathBuf>, Problem> {
    let found = files::canonicalize(path).and_then(|path| Ok((files::metadata(&path)?.is_file(), path)));
    match found {
        Ok((true, path)) => Ok(Some(path)),
        Ok((false, _)) => Ok(None),
        // A link that leads nowhere.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Ok(None),
        Err(error) => Err((path.to_owned(), error)),
    }
}

#[cfg(test)]
mod tests;
