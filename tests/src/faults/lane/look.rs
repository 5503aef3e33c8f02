//! Looking at a machine until it is known for certain.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::block_in_place;

use super::super::files::{active, on_disks};
use super::super::judge::{Kind, Violation, content, judge_present};
use super::super::model::Content;
use super::Lane;
use crate::lab::Power;

/// How long a machine may take until it can be looked at, with faults all the while.
const SETTLE: Duration = Duration::from_secs(120);
/// How long a machine that should not be as it is may take to become what it should be: an abandoned create pauses it.
const GRACE: Duration = Duration::from_secs(20);
/// How long a guest may take to answer before somebody looks whether it still runs.
const ANSWER: Duration = Duration::from_secs(4);
const AGAIN: Duration = Duration::from_millis(100);

impl Lane {
    /// Lets the model know of crashes that it does not know of yet. Returns whether there were any.
    pub(super) fn note_crashes(&mut self) -> bool {
        let crashes = self.world.crashes(self.machine);
        let more = std::mem::replace(&mut self.crashes, crashes) != crashes;
        if more {
            self.model.crashed();
        }
        more
    }

    /// Looks at the machine until it is known for certain.
    pub async fn settle(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.note_crashes();
            let seen = self.look();
            if self.note_crashes() {
                continue;
            }
            let why = match seen {
                Ok((power, present)) => {
                    let found = judge_present(&self.model, power, present.as_ref());
                    if found.is_empty() || begun.elapsed() > GRACE {
                        self.world.history.violated(found);
                        self.model.learn(power, present);
                        return Ok(());
                    }
                    format!("{found:?}")
                }
                Err(error) => format!("{error:#}"),
            };
            if begun.elapsed() > SETTLE {
                let what = format!("it cannot be looked at: {why}");
                self.world.history.violated(vec![Violation {
                    kind: Kind::Stuck,
                    machine: self.model.name.clone(),
                    what,
                }]);
                bail!("{why}");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What the machine does and what is on its disks.
    fn look(&self) -> Result<(Power, Option<Content>)> {
        block_in_place(|| {
            let guest = self.guest();
            let told = self.world.virsh(&["domstate", guest.name(), "--reason"])?;
            let told = told.trim();
            if told.starts_with("running") {
                let report = guest.report_within(ANSWER)?;
                let present = content(&report).map_err(|apart| {
                    let machine = self.model.name.clone();
                    self.world.history.violated(vec![Violation { kind: Kind::Mixed, machine, what: apart.clone() }]);
                    anyhow::Error::msg(apart)
                })?;
                return Ok((Power::Running, Some(present)));
            }
            if told.starts_with("shut off") {
                return Ok((Power::Off, Some(on_disks(&active(&self.world, guest)?)?)));
            }
            if told.starts_with("paused") && told.contains("I/O error") {
                // The file system was full when the guest wrote; an administrator lets it go on once there is room.
                self.world.crash(self.machine);
                self.world.virsh(&["resume", guest.name()])?;
                bail!("it was paused by an I/O error");
            }
            if told.starts_with("paused") {
                return Ok((Power::Paused, None));
            }
            bail!("virsh says {told:?}")
        })
    }
}
