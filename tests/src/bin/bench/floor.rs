//! What no way through the three processes can be below: the syncs that are promised before anybody is told (ADR 8).

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tests::scratch::Scratch;

/// About a commit of the catalogue, or an entry of the journal.
const WRITTEN: usize = 4096;

/// A file beside what the services write.
pub struct Floor {
    _folder: Scratch,
    file: File,
    syncs: Vec<Duration>,
}

impl Floor {
    pub fn new() -> Result<Self> {
        let folder = Scratch::new()?;
        let file = File::create(folder.path().join("synced")).context("a file to sync")?;
        Ok(Self { _folder: folder, file, syncs: Vec::new() })
    }

    /// Appends and syncs once.
    pub fn sync(&mut self) -> Result<()> {
        self.file.write_all(&[0; WRITTEN])?;
        let begun = Instant::now();
        self.file.sync_data()?;
        self.syncs.push(begun.elapsed());
        Ok(())
    }

    /// The times of all syncs.
    pub fn syncs(self) -> Vec<Duration> {
        self.syncs
    }
}
