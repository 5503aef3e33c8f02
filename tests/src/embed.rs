//! Guests under libvirt's embedded driver, `qemu:///embed?root=DIR`: libvirt runs inside the process that opens it, no
//! daemon and no virsh. Only one process may have a root open, and that is the agent; so guests are put there as files
//! before the agent starts:
//!
//! - `DIR/etc/qemu/NAME.xml` is a defined domain when the driver is opened;
//! - a link to it in `DIR/etc/qemu/autostart/` starts it then, once: `DIR/run/qemu/autostarted` says that it was done;
//! - QEMU outlives the process and is found again when the root is opened again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::guest::Guest;
use crate::libvirtd::QEMU_CONF;
use crate::scratch::{Scratch, is_alive, kill_guests};
use crate::tools::shared_cache;

/// A root of the embedded driver. Dropping it kills its guests and removes its folder; stop the agent before.
#[derive(Debug)]
pub struct EmbedRoot {
    scratch: Scratch,
}

impl EmbedRoot {
    /// An empty root.
    pub fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let etc = scratch.folder("etc")?;
        scratch.folder("etc/qemu/autostart")?;
        fs::write(etc.join("qemu.conf"), QEMU_CONF)?;
        // What QEMU can do takes four seconds to find out; all roots share what was found.
        symlink(shared_cache("libvirt")?, scratch.path().join("cache"))?;
        Ok(Self { scratch })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Where guests put their images and their sockets.
    pub fn images(&self) -> Result<PathBuf> {
        self.scratch.folder("images")
    }

    /// The connection URI, for the one process that is to open it.
    pub fn uri(&self) -> String {
        format!("qemu:///embed?root={}", self.folder().display())
    }

    /// Puts a guest's domain there; it is known, and with `autostart` runs, from the next time the root is opened.
    pub fn define(&self, guest: &Guest, autostart: bool) -> Result<()> {
        let file = format!("{}.xml", guest.name());
        let folder = self.folder().join("etc/qemu");
        fs::write(folder.join(&file), guest.xml()?)?;
        if autostart {
            symlink(Path::new("..").join(&file), folder.join("autostart").join(&file))?;
            let done = self.folder().join("run/qemu/autostarted");
            if done.exists() {
                fs::remove_file(&done).context("the mark that guests were started")?;
            }
        }
        Ok(())
    }

    /// Whether the guest's QEMU runs.
    pub fn is_running(&self, guest: &Guest) -> bool {
        let file = self.folder().join("run/qemu").join(format!("{}.pid", guest.name()));
        let pid = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
        pid.is_some_and(is_alive)
    }
}

impl Drop for EmbedRoot {
    fn drop(&mut self) {
        kill_guests(&self.folder().join("run/qemu"), self.folder());
    }
}
