//! Small file systems that can be filled.
//!
//! They are mounted in the mount namespace of the process, which the campaign makes its own before it begins: whatever
//! happens to it, they end with its last process.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::tools::run;

/// What fills a file system.
const BALLAST: &str = "ballast";

/// A mounted tmpfs.
#[derive(Debug)]
pub struct Space {
    path: PathBuf,
}

impl Space {
    /// Mounts one over an empty folder.
    pub fn mount(path: &Path, mib: u32) -> Result<Self> {
        ensure!(in_own_namespace()?, "a file system is mounted only in a namespace of one's own");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0755"), "tmpfs"]).arg(path))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it but for so many bytes.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let told = run(Command::new("df").args(["-B1", "--output=avail"]).arg(&self.path))?;
        let free: u64 = told.lines().nth(1).unwrap_or_default().trim().parse()?;
        if free > leave {
            let ballast = self.path.join(BALLAST);
            run(Command::new("fallocate").args(["-l", &(free - leave).to_string()]).arg(ballast))?;
        }
        Ok(())
    }

    /// Makes room again.
    pub fn clear(&self) {
        let _ = fs::remove_file(self.path.join(BALLAST));
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // Lazily: what still runs on it keeps it until its end.
        let _ = run(Command::new("umount").arg("-l").arg(&self.path));
    }
}

/// Where the process that started this one in another namespace has told which one its own is.
const OUTER: &str = "FAULTS_OUTER_NAMESPACE";

/// Whether this process was started in a mount namespace other than its starter's.
pub fn in_own_namespace() -> Result<bool> {
    let outer = std::env::var_os(OUTER);
    Ok(outer.is_some_and(|outer| namespace().is_ok_and(|own| own != outer)))
}

/// A command that runs a program in a mount namespace of its own.
pub fn in_new_namespace(program: &Path) -> Result<Command> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(program).env(OUTER, namespace()?);
    Ok(command)
}

fn namespace() -> Result<OsString> {
    Ok(fs::read_link("/proc/self/ns/mnt")?.into_os_string())
}
