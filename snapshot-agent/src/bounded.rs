//! Bounded waits for storage and for libvirt.
//!
//! A file system whose server is dead does not fail: open(), stat() and read() never return, and the thread that called cannot
//! be ended. The same goes for a call to libvirt about a domain whose QEMU does not answer. So:
//!
//! 1. Every file of a VM is accessed by [`files`], which registers the path for as long as the access takes. An access to a path
//!    at which another one hangs, or to a mount at which too many do ([`mounts`]), is refused with [`std::io::ErrorKind::TimedOut`]
//!    before it begins: each dead file system costs a bounded number of threads.
//! 2. A look at a VM runs as a job ([`jobs`]) on a thread of its own, and whoever waits for it gives up when one access or one
//!    call takes too long. The thread stays; until it returns, further jobs about the same VM are refused at once.
//! 3. When a thread that was given up returns, [`jobs::returned`] tells, and what was refused is tried again. Nothing has to be
//!    restarted.

pub mod directories;
pub mod files;
pub mod jobs;
mod mounts;

pub use self::jobs::{Doing, Stuck};
pub use self::mounts::prepare;
