//! Wrongs of which each has to be found: a byte that is changed, an image that is removed.

use std::fs;

use anyhow::{Context as _, Result, bail};

use super::disk_tools::{self as tools, Written};
use super::room::Room;

impl Room {
    /// Changes an image and removes another behind everybody's back.
    pub(super) fn sabotage(&self) -> Result<()> {
        let bases = self.bases();
        let mut free = self.ledger.loose.keys().filter(|path| !bases.contains(*path));
        let (changed, removed) = (free.next().context("no image")?, free.next().context("no second image")?);
        match tools::write(&self.scratch(), changed, 1, u32::MAX)? {
            Written::Done => {}
            other => bail!("{} cannot be changed: {other:?}", changed.display()),
        }
        Ok(fs::remove_file(removed)?)
    }
}
