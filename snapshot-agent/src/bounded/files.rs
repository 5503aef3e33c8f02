//! Accesses to the files of VMs, each registered for as long as it takes.
//!
//! What is refused here is refused with [`io::ErrorKind::TimedOut`], which a soft-mounted NFS returns by itself as well: callers
//! treat both as "not known now", never as "not there".

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, ReadDir};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::jobs::{self, Doing};
use super::mounts;

/// Seconds after which an access that has not returned counts as one that hangs, and others to the same path are refused.
const HANGS_AFTER: Duration = Duration::from_secs(3);
/// After which it may be one that hangs: others that it would stand in the way of wait for what becomes of it.
const SLOW_AFTER: Duration = Duration::from_millis(200);
/// Accesses that may hang on the whole host at once; beyond it a mount at which any access hangs is not touched.
const MOST: usize = 64;

#[derive(Default)]
struct Accesses {
    next: u64,
    /// By number, and so by age.
    under_way: BTreeMap<u64, (Instant, PathBuf)>,
}

impl Accesses {
    /// The paths of the accesses that have been under way for so long.
    fn older_than(&self, age: Duration) -> Vec<PathBuf> {
        let old = self.under_way.values().take_while(|(begun, _)| begun.elapsed() >= age);
        old.map(|(_, path)| path.clone()).collect()
    }
}

static ACCESSES: Mutex<Accesses> = Mutex::new(Accesses { next: 0, under_way: BTreeMap::new() });

/// Tells when an access has ended.
static ENDED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Accesses> {
    ACCESSES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An access that is under way, until this is dropped.
#[derive(Debug)]
pub struct Access {
    number: u64,
    /// What the thread was at before.
    before: Doing,
}

impl Drop for Access {
    fn drop(&mut self) {
        lock().under_way.remove(&self.number);
        ENDED.notify_all();
        jobs::doing(std::mem::replace(&mut self.before, Doing::Nothing));
    }
}

/// Begins an access to a path. An error when the path, or its file system, does not answer others already; nothing was touched.
/// Where that is not certain yet, it is waited until it is.
pub fn enter(path: &Path) -> io::Result<Access> {
    let begun = Instant::now();
    let before = jobs::doing(Doing::File(path.to_owned()));
    let mut accesses = lock();
    loop {
        let slow = accesses.older_than(SLOW_AFTER);
        if slow.is_empty() {
            break;
        }
        // The mount table is read without the lock.
        drop(accesses);
        let hanging = lock().older_than(HANGS_AFTER);
        let in_the_way = in_the_way(&hanging, path);
        let patience_is_over = begun.elapsed() >= HANGS_AFTER;
        let other = match in_the_way {
            Some(other) => Some(other),
            None => match self::in_the_way(&slow, path) {
                Some(other) if patience_is_over => Some(other),
                Some(_) => None,
                None => {
                    accesses = lock();
                    break;
                }
            },
        };
        if let Some(other) = other {
            jobs::doing(before);
            jobs::refused(&other);
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} does not respond", other.display())));
        }
        accesses = ENDED.wait_timeout(lock(), SLOW_AFTER).unwrap_or_else(PoisonError::into_inner).0;
    }
    let number = accesses.next;
    accesses.next += 1;
    accesses.under_way.insert(number, (Instant::now(), path.to_owned()));
    drop(accesses);
    jobs::doing(Doing::File(path.to_owned()));
    Ok(Access { number, before })
}

/// Which of the paths at which accesses hang stands in the way of an access to this one.
fn in_the_way(hanging: &[PathBuf], path: &Path) -> Option<PathBuf> {
    if hanging.is_empty() {
        return None;
    }
    if let Some(same) = hanging.iter().find(|other| *other == path) {
        return Some(same.clone());
    }
    let mount = mounts::of(path)?;
    let at_mount: Vec<&PathBuf> = hanging.iter().filter(|other| mounts::of(other).as_ref() == Some(&mount)).collect();
    let most = if hanging.len() >= MOST { 1 } else { mount.most };
    at_mount.first().filter(|_| at_mount.len() >= most).map(|first| (*first).clone())
}

/// The paths at which accesses hang now, the longest first.
pub fn hanging() -> Vec<PathBuf> {
    lock().older_than(HANGS_AFTER)
}

/// Does something that accesses a path.
pub fn with<T>(path: &Path, access: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let _access = enter(path)?;
    access()
}

/// [`Path::try_exists`].
pub fn try_exists(path: &Path) -> io::Result<bool> {
    with(path, || path.try_exists())
}

/// Whether there is something, links followed; `false` also where that cannot be told.
pub fn exists(path: &Path) -> bool {
    matches!(try_exists(path), Ok(true))
}

/// Whether there is something, links followed; `true` also where that cannot be told.
pub fn may_exist(path: &Path) -> bool {
    !matches!(try_exists(path), Ok(false))
}

/// A path without links, so that two that lead to one file are one. That of a file that is not there goes by its directory.
pub fn resolved(path: &Path) -> PathBuf {
    let directory = || Some(canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    canonicalize(path).ok().or_else(directory).unwrap_or_else(|| path.to_owned())
}

/// [`fs::metadata`].
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    with(path, || fs::metadata(path))
}

/// [`fs::symlink_metadata`].
pub fn symlink_metadata(path: &Path) -> io::Result<Metadata> {
    with(path, || fs::symlink_metadata(path))
}

/// Whether it is a directory; `false` also where that cannot be told.
pub fn is_dir(path: &Path) -> bool {
    metadata(path).is_ok_and(|found| found.is_dir())
}

/// [`fs::canonicalize`].
pub fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    with(path, || fs::canonicalize(path))
}

/// [`File::open`].
pub fn open(path: &Path) -> io::Result<File> {
    with(path, || File::open(path))
}

/// [`fs::read_dir`]. Reading the entries is not registered.
pub fn read_dir(path: &Path) -> io::Result<ReadDir> {
    with(path, || fs::read_dir(path))
}

/// Bytes free and in total on the file system that a path is on.
pub fn space(path: &Path) -> io::Result<(u64, u64)> {
    let stat = with(path, || Ok(rustix::fs::statvfs(path)?))?;
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}

/// The number of the file system that a path is on, of linux/magic.h.
pub fn file_system(path: &Path) -> io::Result<rustix::fs::FsWord> {
    with(path, || Ok(rustix::fs::statfs(path)?.f_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_refused_only_where_it_or_its_mount_hangs() {
        let paths = |count: usize| (0..count).map(|n| PathBuf::from(format!("/hung/{n}"))).collect::<Vec<_>>();
        let refused = |hanging: &[PathBuf], path: &str| in_the_way(hanging, Path::new(path)).is_some();
        assert!(!refused(&[], "/hung/0"));
        assert!(refused(&paths(1), "/hung/0"));
        assert!(!refused(&paths(10), "/hung/other"), "others on a local file system are not affected");
        assert!(refused(&paths(24), "/hung/other"), "a local file system costs a bounded number of threads");
        assert!(!refused(&paths(63), "/proc/self"), "and does not affect other file systems");
    }

    #[test]
    fn an_access_is_under_way_until_it_is_dropped() {
        let path = Path::new("/nonexistent/under-way");
        let count = || lock().under_way.values().filter(|(_, other)| other == path).count();
        let access = enter(path).unwrap();
        assert_eq!(count(), 1);
        drop(access);
        assert_eq!(count(), 0);
    }
}
