//! Wrongs of which each has to be found: a byte that is changed, an image that is removed, a snapshot that is deleted.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::content::May;
use super::disk_tools::{self as tools, Written};
use super::ledger::Tag;
use super::room::Room;
use crate::tools::run;

/// A snapshot that is there when it is deleted.
const TAG: &str = "sabotaged";

impl Room {
    /// Changes an image, removes another, and deletes a snapshot of a third behind everybody's back.
    pub(super) fn sabotage(&mut self) -> Result<()> {
        while self.ledger.loose.len() < 6 {
            let (path, may) = self.new_image("extra", 0)?;
            self.ledger.loose.insert(path, may);
        }
        let bases = self.bases();
        let has_no_snapshot = |path: &std::path::PathBuf| self.ledger.tags.iter().all(|tag| tag.file != *path);
        let free = self.ledger.loose.keys().filter(|path| !bases.contains(*path) && has_no_snapshot(path));
        let free: Result<[_; 3], _> = free.take(3).cloned().collect::<Vec<_>>().try_into();
        let [changed, removed, tagged] = free.ok().context("three images")?;
        match tools::write(&self.scratch(), &changed, 1, u32::MAX)? {
            Written::Done => {}
            other => bail!("{} cannot be changed: {other:?}", changed.display()),
        }
        fs::remove_file(removed)?;
        let may = May::exactly(self.read(&tagged, None)?);
        for verb in ["-c", "-d"] {
            run(Command::new("qemu-img").args(["snapshot", verb, TAG]).arg(&tagged))?;
        }
        self.ledger.tags.push(Tag { file: tagged, name: TAG.to_owned(), may });
        Ok(())
    }
}
