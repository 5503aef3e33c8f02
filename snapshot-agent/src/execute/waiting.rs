//! Looking at the machine of an operation, with the patience that it takes: libvirt may be away for a while.

use std::time::Duration;

use snapshot_core::Error;

use super::operation::Progress;
use super::work::{Halt, Work};
use crate::hypervisor::{Failure, Hypervisor, Observed, Reread};

/// How long to wait before the hypervisor is asked again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often a machine is looked at that libvirt answers for and cannot tell of.
const MOST_LOOKS: u32 = 20;

/// The phase of an operation whose VM does not respond.
pub(super) const UNRESPONSIVE: &str = "waiting for the VM's storage or QEMU to respond";

/// How often something is called that libvirt goes away from each time.
const MOST_CALLS: u32 = 10;

/// How often something is tried again: not long where libvirt refuses, and longer where it goes away, which says nothing about
/// what was asked.
pub(super) struct Tries {
    refusals: u32,
    losses: u32,
}

impl Tries {
    /// So many for refusals.
    pub(super) fn new(refusals: u32) -> Self {
        Self { refusals, losses: MOST_CALLS }
    }

    /// Counts a failure; returns whether it was the last try.
    pub(super) fn is_last(&mut self, failure: &Failure) -> bool {
        let left = if matches!(failure, Failure::Unreachable(_) | Failure::Unresponsive(_)) {
            &mut self.losses
        } else {
            &mut self.refusals
        };
        *left = left.saturating_sub(1);
        *left == 0
    }
}

impl Work<'_> {
    /// Calls something that may be repeated, and once more whenever libvirt was away and has come back.
    pub(super) fn patiently<T>(
        &mut self,
        call: impl Fn(&dyn Hypervisor) -> Result<T, Failure>,
    ) -> Result<Result<T, Failure>, Halt> {
        let shared = self.shared;
        for _ in 1..MOST_CALLS {
            match call(&*shared.hypervisor) {
                Err(Failure::Unreachable(why)) => {
                    tracing::warn!(why, "libvirt went away; calling again when it is back");
                    self.look()?;
                }
                Err(Failure::Unresponsive(found)) => {
                    tracing::warn!(message = found.restriction.message, "calling again when the VM responds");
                    self.look()?;
                }
                result => return Ok(result),
            }
        }
        Ok(call(&*shared.hypervisor))
    }

    /// The machine as it is. Waits for a hypervisor that is away: what has happened to the machine has to be known
    /// before anything else can be decided.
    pub(super) fn look(&mut self) -> Result<Observed, Halt> {
        let vm = self.entry.vm;
        let (mut pause, mut looks) = (FIRST_PAUSE, 0);
        loop {
            match self.shared.hypervisor.observe(vm, Reread::New) {
                Ok(seen) => return Ok(self.saw(seen)),
                Err(Failure::VmGone) => return Err(Error::vm_not_found(vm).into()),
                Err(Failure::Unreachable(why)) => {
                    tracing::debug!(why, "waiting for libvirt");
                    let percent = u8::try_from(self.done * 100 / self.entry.steps.len().max(1)).unwrap_or(100);
                    self.operation.progress(Progress { phase: "waiting for libvirt".to_owned(), percent });
                }
                Err(Failure::Unresponsive(found)) => {
                    tracing::debug!(message = found.restriction.message, "waiting for the VM to respond");
                    let percent = u8::try_from(self.done * 100 / self.entry.steps.len().max(1)).unwrap_or(100);
                    self.operation.progress(Progress { phase: UNRESPONSIVE.to_owned(), percent });
                }
                Err(failure) => {
                    looks += 1;
                    tracing::warn!(%failure, looks, "the machine cannot be read");
                    if looks == MOST_LOOKS {
                        return Err(failure.to_error(vm, None, "the machine cannot be read").into());
                    }
                }
            }
            if self.shared.stopping.is_cancelled() {
                return Err(Halt::LeftOff);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The machine as it is after calls that succeeded, as far as taking and deleting snapshots changes it.
    pub(super) fn look_again(&mut self) -> Result<Observed, Halt> {
        let Some(before) = self.seen.take() else { return self.look() };
        match self.shared.hypervisor.observe_again(&before) {
            Ok(seen) => Ok(self.saw(seen)),
            Err(_) => self.look(),
        }
    }

    fn saw(&mut self, seen: Observed) -> Observed {
        let seen = self.shared.with_record(seen);
        self.stale = false;
        self.seen = Some(seen.clone());
        seen
    }

    /// The machine as it is, without looking when nothing was changed since the last time.
    pub(super) fn seen(&mut self) -> Result<Observed, Halt> {
        match &self.seen {
            Some(seen) if !self.stale => Ok(seen.clone()),
            Some(_) => self.look_again(),
            None => self.look(),
        }
    }
}
