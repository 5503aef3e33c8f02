//! A file system of the bench's own, on a loop device, which counts what is written to it by whomever.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tests::scratch::Scratch;
use tests::tools::run;

/// Room for the images of one cascade. Sparse.
const SIZE: u64 = 4 << 30;
/// The unit of the kernel's counters, whatever the device's own is.
const SECTOR: u64 = 512;

/// A mounted file system.
pub struct Volume {
    scratch: Scratch,
}

impl Volume {
    /// Makes and mounts one. To be done before a private daemon starts, which keeps the mounts that it finds.
    pub fn mount() -> Result<Self> {
        let volume = Self { scratch: Scratch::new()? };
        let file = volume.scratch.path().join("volume");
        fs::File::create(&file)?.set_len(SIZE)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&file))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(volume.folder()?))?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub fn folder(&self) -> Result<PathBuf> {
        self.scratch.folder("mounted")
    }

    /// The bytes that were written to the device so far, with what the kernel still held back.
    pub fn written(&self) -> Result<u64> {
        run(Command::new("sync").arg("-f").arg(self.folder()?))?;
        let stat = fs::read_to_string(Path::new("/sys/block").join(self.device()?).join("stat"))?;
        let sectors = stat.split_whitespace().nth(6).context("a device without counters")?;
        Ok(sectors.parse::<u64>()? * SECTOR)
    }

    fn device(&self) -> Result<String> {
        let place = self.folder()?;
        let told = run(Command::new("findmnt").args(["-n", "-o", "SOURCE", "--mountpoint"]).arg(&place))?;
        Ok(told.trim().trim_start_matches("/dev/").to_owned())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily, for a daemon may still be on it; the loop device goes with its last user.
        let _ = run(Command::new("umount").arg("-l").arg(self.scratch.path().join("mounted")));
    }
}
