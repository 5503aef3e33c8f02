//! What the agent may touch. It is started as root and keeps nothing of that but what it needs.
//!
//! [`List`] says what that is, and decides by the configuration alone: folders and files, TCP ports, capabilities. [`enter`]
//! makes it so, before anything is listened on and before there is a second thread, because all of it holds for a thread
//! and for those that it starts:
//!
//! 1. Capabilities that are not on the list go from every set, the bounding set included; `no_new_privs`.
//! 2. Landlock: the kernel refuses every file, port and process of others that is not on the list.
//! 3. seccomp: the kernel refuses every system call that is not in [`calls`].
//!
//! Programs that the agent starts, which is `qemu-img` alone, inherit all of it, and are narrowed further to the files they are
//! started for ([`crate::qemu_img`]).
//!
//! With libvirt's embedded driver QEMU runs as a child of this process, and libvirt in it. Then nothing of this can be.

mod calls;
mod enter;
mod landed;
mod list;

pub use enter::{ReachError, Reached, enter};
pub(crate) use landed::{Rules, confine_thread, handle};
pub(crate) use list::system;
pub use list::{Capability, Enforce, List, May, Place, ReachConfig, cannot_be_narrowed};
