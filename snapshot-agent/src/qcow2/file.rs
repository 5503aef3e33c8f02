//! What the host says about the file of an image: which file it is, whether it can be written, and who holds locks on it.
//!
//! QEMU locks single bytes of the images it opens (`block/file-posix.c`): one from 100 on for each permission that it has, one
//! from 200 on for each that it denies to others: 0 reading, 1 writing, 3 resizing. An image that is opened with `force-share`
//! denies nothing, and stops nobody.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use rustix::fs::{AtFlags, FileType, StatVfsMountFlags, StatxAttributes, StatxFlags, fstatvfs, makedev, statx};

/// What keeps an image from being opened as a backing file: somebody may write or resize it, or denies reading.
const WRITTEN: [i64; 3] = [101, 103, 200];
/// What beside that keeps it from being opened for writing: somebody denies writing or resizing.
const READ: [i64; 2] = [201, 203];

/// What the host says about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostFile {
    /// The device and the inode: the same by whatever path it is found.
    pub number: (u64, u64),
    /// Bytes taken on the file system.
    pub allocation_bytes: u64,
    /// Whether it is marked as immutable or as one that is only appended to.
    pub immutable: bool,
    /// Whether its file system is mounted read-only.
    pub read_only: bool,
    /// Whether it is a regular file on a file system that tells locks: a QEMU that has it open for writing is seen by them.
    pub lockable: bool,
    /// Whether another process has locked it as QEMU does: it cannot be opened for writing.
    pub locked: bool,
    /// Whether another process has it open for writing, or for itself: it cannot be opened as a backing file.
    pub written: bool,
}

impl HostFile {
    /// Asks about a file that is open. Its locks are those of other open files, of this process as well.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        let fixed = StatxAttributes::IMMUTABLE.union(StatxAttributes::APPEND);
        let mounted = fstatvfs(file)?;
        let written = has_lock(file, &WRITTEN);
        let is_regular = FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile;
        Ok(Self {
            number: (makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino),
            allocation_bytes: found.stx_blocks.saturating_mul(512),
            immutable: found.stx_attributes.intersects(fixed),
            read_only: mounted.f_flag.contains(StatVfsMountFlags::RDONLY),
            lockable: is_regular && lock(file, WRITTEN[0]).is_some(),
            locked: written || has_lock(file, &READ),
            written,
        })
    }
}

/// A file system without such locks has none, for QEMU as well.
fn has_lock(file: &File, bytes: &[i64]) -> bool {
    bytes.iter().any(|byte| lock(file, *byte) == Some(true))
}

/// Whether a byte is locked; `None` where the file system does not tell.
fn lock(file: &File, byte: i64) -> Option<bool> {
    // SAFETY: a lock of zeros is one; all of its fields are numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(libc::F_WRLCK).unwrap_or_default();
    lock.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    (lock.l_start, lock.l_len) = (byte, 1);
    // SAFETY: the descriptor is open as long as the reference, and the lock outlives the call.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    (asked == 0).then(|| i32::from(lock.l_type) != libc::F_UNLCK)
}
