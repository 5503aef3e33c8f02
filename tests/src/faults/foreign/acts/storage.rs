//! Storage: images that others have open, pools that stop, files that do not respond.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use super::super::room::{Held, Outcome, Room};
use super::{attempt, pick};
use crate::hung::HungFiles;

/// How long a file does not respond.
const HANGS: Duration = Duration::from_millis(700);
/// How long a process may take until it has its image open.
const OPENED: Duration = Duration::from_millis(60);

impl Room {
    /// Has a process open an image until the end of the step.
    pub(super) fn hold(&mut self, which: u64, for_writing: bool) -> Result<Outcome> {
        let mut all: Vec<PathBuf> = self.active().into_iter().chain(self.ledger.loose.keys().cloned()).collect();
        if let Some(race) = &self.race
            && !which.is_multiple_of(4)
        {
            all = self.ledger.vms[race.vm].disks.values().map(|disk| disk.path.clone()).collect();
        }
        let Some(path) = pick(&all, which >> 8).cloned() else { return Ok(Outcome::Impossible) };
        let mut command = match (for_writing, which.is_multiple_of(3)) {
            // It waits for its first client.
            (false, true) => {
                let mut command = Command::new("qemu-nbd");
                let socket = self.scratch().join(self.fresh("nbd"));
                command.args(["-r", "-f", "qcow2", "-k"]).arg(socket);
                command
            }
            // It waits for a command.
            (false, false) => {
                let mut command = Command::new("qemu-io");
                command.args(["-r", "-f", "qcow2"]);
                command
            }
            (true, _) => {
                let mut command = Command::new("qemu-io");
                command.args(["-f", "qcow2"]);
                command
            }
        };
        let started = command.arg(&path).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.held.push(Held(attempt!(started.map_err(anyhow::Error::from))));
        std::thread::sleep(OPENED);
        Ok(Outcome::Done(path.display().to_string()))
    }

    pub(super) fn pool(&mut self, verb: &str) -> Result<Outcome> {
        attempt!(self.world.virsh(&[verb, &self.pool]));
        Ok(Outcome::Done(format!("{verb} {}", self.pool)))
    }

    /// An image that is no disk does not respond for a while.
    pub(super) fn hang(&mut self, which: u64) -> Result<Outcome> {
        let all: Vec<PathBuf> = self.ledger.loose.keys().cloned().collect();
        let Some(path) = pick(&all, which) else { return Ok(Outcome::Impossible) };
        let hung = HungFiles::new([path])?;
        std::thread::sleep(HANGS);
        drop(hung);
        Ok(Outcome::Done(path.display().to_string()))
    }
}
