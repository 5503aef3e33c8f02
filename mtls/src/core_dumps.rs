//! What is in the memory of a process that has keys, and tokens of its callers, stays there.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Has the kernel write no core dump of this process, whatever it was started with. To be called before a key is read.
///
/// # Errors
/// When the kernel refuses, which it does not for less than there was.
pub fn forbid_core_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // The limit does not hold where a program takes the dumps, as systemd-coredump does.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
