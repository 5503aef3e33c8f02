//! Storage: images that others have open, pools that stop, files that do not respond.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use super::super::room::{HOSTS, Held, Outcome, Room};
use super::{attempt, pick};
use crate::hung::HungFiles;

/// How long a file does not respond.
const HANGS: Duration = Duration::from_millis(700);
/// The least that a directory does not respond: some of what waits for it counts as hanging after three seconds.
const DIRECTORY_HANGS: Duration = Duration::from_millis(2500);
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

    pub(super) fn pool(&mut self, which: u64, verb: &str) -> Result<Outcome> {
        let host = which as usize % HOSTS;
        attempt!(self.world.virsh_on(host, &[verb, &self.pool]));
        Ok(Outcome::Done(format!("{verb} {} on host {host}", self.pool)))
    }

    /// The second directory of the room and all images in it do not respond for some seconds, as where a file server is away. Whoever opens
    /// one meanwhile waits, administrators and libvirt included.
    pub(super) fn hang_directory(&mut self, which: u64) -> Result<Outcome> {
        self.hangs.retain(|hang| !hang.is_finished());
        if !self.hangs.is_empty() {
            return Ok(Outcome::Impossible);
        }
        let (directory, hangs) = (self.directories[1].clone(), DIRECTORY_HANGS + Duration::from_millis(which % 4000));
        let hung = HungFiles::new([&directory])?;
        self.hangs.push(std::thread::spawn(move || {
            std::thread::sleep(hangs);
            drop(hung);
        }));
        Ok(Outcome::Done(format!("{} for {hangs:?}", directory.display())))
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
