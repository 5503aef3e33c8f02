//! inotify: what the kernel tells of changes in folders.
//!
//! Watches are asked for on blocking threads, because a path may lead to a file system that does not answer. What is told
//! is read without blocking.

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// The most events that are taken at a time.
const BATCH: usize = 1024;

/// What is asked for of every folder. Writing alone is not: a running guest writes all day, and closes its image when it
/// stops. Attributes are: an image that is immutable or that cannot be read is of no use.
const WANTED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// The kernel's side; clones share it.
#[derive(Clone)]
pub(super) struct Inotify(Arc<AsyncFd<OwnedFd>>);

/// What happened.
#[derive(Debug)]
pub(super) struct Told {
    /// The watch it was told by; negative when it concerns all of them.
    pub(super) watch: i32,
    /// The name within the folder; empty where it is about the folder itself.
    pub(super) name: OsString,
    flags: ReadFlags,
}

impl Told {
    /// Events were lost.
    pub(super) fn is_loss(&self) -> bool {
        self.flags.contains(ReadFlags::QUEUE_OVERFLOW)
    }

    /// The folder is not what it was: removed, moved, or its file system unmounted. The path leads elsewhere now.
    pub(super) fn is_end(&self) -> bool {
        self.flags.intersects(ReadFlags::DELETE_SELF.union(ReadFlags::MOVE_SELF).union(ReadFlags::UNMOUNT))
    }

    /// The kernel has dropped the watch.
    pub(super) fn is_dropped(&self) -> bool {
        self.flags.contains(ReadFlags::IGNORED)
    }

    /// It is about a folder within the folder.
    pub(super) fn is_folder(&self) -> bool {
        self.flags.contains(ReadFlags::ISDIR)
    }

    /// What has this name is here since.
    pub(super) fn is_arrival(&self) -> bool {
        self.flags.intersects(ReadFlags::CREATE.union(ReadFlags::MOVED_TO))
    }
}

impl Inotify {
    /// Has to be called within the runtime.
    pub(super) fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned by what is registered, which nothing takes it out of: it stays open as long.
        let registered = unsafe { AsyncFd::register(fd)? };
        Ok(Self(Arc::new(registered)))
    }

    /// Watches a folder and returns the watch; the one there is when the folder is watched already. Blocks.
    pub(super) fn add(&self, folder: &Path) -> io::Result<i32> {
        Ok(inotify::add_watch(self.0.get_ref(), folder, WANTED)?)
    }

    /// Ends a watch; one that has ended by itself is no failure.
    pub(super) fn remove(&self, watch: i32) {
        let _ = inotify::remove_watch(self.0.get_ref(), watch);
    }

    /// Waits until something is told, and takes it. Nothing is lost when the wait is given up.
    pub(super) async fn told(&self) -> io::Result<Vec<Told>> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 8192];
            let mut reader = inotify::Reader::new(self.0.get_ref(), &mut buffer);
            let mut told = Vec::new();
            while told.len() < BATCH || !reader.is_buffer_empty() {
                match reader.next() {
                    Ok(event) => {
                        let name = event.file_name().map(|name| OsString::from_vec(name.to_bytes().to_vec()));
                        told.push(Told { watch: event.wd(), name: name.unwrap_or_default(), flags: event.events() });
                    }
                    Err(Errno::WOULDBLOCK) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if !told.is_empty() {
                return Ok(told);
            }
        }
    }
}
