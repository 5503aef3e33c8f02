//! Beginning to watch a directory. Looking up its path waits for its storage, which may not respond: the wait is bounded, and the
//! directories that are on other storage are watched meanwhile.

use std::io;
use std::path::{Path, PathBuf};

use super::Place;
use super::inotify::Inotify;
use crate::bounded::{files, jobs};

/// What came of it.
pub(super) struct Added {
    pub(super) place: Place,
    pub(super) result: io::Result<i32>,
    /// The directories in libvirt's.
    pub(super) domains: Vec<String>,
}

pub(super) fn add(inotify: &Inotify, place: Place, path: PathBuf, is_room: bool) -> Added {
    if !is_room {
        let result = Err(io::Error::other("too many folders are watched"));
        return Added { place, result, domains: Vec::new() };
    }
    let (inotify, is_root, about) = (inotify.clone(), place == Place::Root, format!("watch of {}", path.display()));
    let watch = move || {
        files::with(&path, || {
            let watch = inotify.add(&path)?;
            // Listed after the watch has begun: what comes in between is found twice and not missed.
            Ok((watch, if is_root { directories_in(&path) } else { Vec::new() }))
        })
    };
    let added = jobs::run(&about, watch);
    let added = added.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not respond")));
    match added {
        Ok((watch, domains)) => Added { place, result: Ok(watch), domains },
        Err(error) => Added { place, result: Err(error), domains: Vec::new() },
    }
}

fn directories_in(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
