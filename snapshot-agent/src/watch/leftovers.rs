//! What an operation could not remove of a snapshot that failed, for instance because a disk was full, and files that an
//! interrupted one has left, or has left with a second name: it is tried again at intervals, whenever its machine is
//! looked at and no operation has it.
//!
//! Only what was noted as such ([`crate::owned`]) is removed. That an image holds something which libvirt does not list says
//! nothing: somebody may have had libvirt forget it for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapshot_core::Error;
use snapshot_core::ids::{OperationId, SnapshotId, VmId};

use super::looks::Seen;
use crate::bounded::files;
use crate::hypervisor::{GUARDED, Hypervisor, Observed, Reread};
use crate::locks::Locks;
use crate::machines::Machines;
use crate::owned::{self, Owned};

/// How long after it was tried on a machine it is tried again.
const AGAIN: Duration = Duration::from_secs(20);

/// When it was last tried on which machine.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    tried: BTreeMap<VmId, Instant>,
}

impl Leftovers {
    /// What is to be done about a machine as it was seen just now; it blocks, and has the machine until it is done.
    pub(super) fn clear(
        &mut self,
        hypervisor: &Arc<dyn Hypervisor>,
        locks: &Arc<Locks>,
        machines: &Arc<Machines>,
        seen: &Seen,
    ) -> Option<impl FnOnce() + Send + use<>> {
        let Seen { observed: seen, left: Left { guarded, has_spare }, .. } = seen;
        let vm = seen.vm.id;
        let noted = machines.owned().and_then(|owned| owned.get(vm)).map(|record| record.remains).unwrap_or_default();
        let left: Vec<SnapshotId> = noted.into_iter().filter(|id| seen.has_stray(id)).collect();
        let (guarded, has_spare) = (guarded.clone(), *has_spare);
        let safety = machines.owned().map(|owned| owned.unneeded_safety(vm)).unwrap_or_default();
        if left.is_empty() && guarded.is_empty() && !has_spare && safety.is_empty() {
            self.tried.remove(&vm);
            return None;
        }
        if self.tried.get(&vm).is_some_and(|tried| tried.elapsed() < AGAIN) {
            return None;
        }
        // Whoever comes meanwhile is told that the machine is busy, and comes again.
        let guard = locks.take(vm, OperationId::from_uuid(uuid::Uuid::now_v7())).ok()?;
        self.tried.insert(vm, Instant::now());
        let (hypervisor, machines, facts) = (Arc::clone(hypervisor), Arc::clone(machines), seen.vm.clone());
        Some(move || {
            for id in left {
                match hypervisor.remove_stray(&facts, &id) {
                    Ok(()) => tracing::info!(%vm, %id, "removed what was left of a snapshot that failed"),
                    Err(failure) => {
                        tracing::warn!(%vm, %id, %failure, "what is left of a snapshot cannot be removed yet")
                    }
                }
            }
            if !safety.is_empty()
                && let Some(Err(failure)) = machines.owned().map(|owned| owned.clear_safety(&*hypervisor, vm))
            {
                tracing::warn!(%vm, %failure, "safety tags of a revert cannot be removed yet");
            }
            if !guarded.is_empty()
                && let Err(failure) = hypervisor.unguard(&guarded)
            {
                tracing::warn!(%vm, %failure, ?guarded, "second names of files cannot be removed yet");
            }
            if has_spare && let Err(error) = clear_spare(&*hypervisor, &machines, vm) {
                tracing::warn!(%vm, ?error, "files that nobody needs could not be removed yet");
            }
            drop(guard);
        })
    }
}

/// What is there of files that should not be.
pub(super) struct Left {
    /// Files that an interrupted revert has left with a second name.
    guarded: Vec<String>,
    /// Whether there are files of ours that the machine has no use for.
    has_spare: bool,
}

impl Left {
    /// Looks for them.
    pub(super) fn of(owned: Option<&Owned>, seen: &Observed) -> Self {
        let wanted = owned.map(|owned| owned.wanted(seen.vm.id)).unwrap_or_default();
        Self { guarded: guarded(seen, &wanted), has_spare: owned.is_some_and(|owned| owned.has_spare(seen)) }
    }
}

/// Those with both names, and those on record that have the second alone.
fn guarded(seen: &Observed, wanted: &BTreeSet<String>) -> Vec<String> {
    let file = |path: &str| files::symlink_metadata(Path::new(path)).ok().map(|found| (found.dev(), found.ino()));
    let is_guarded = |path: &&str| match (file(path), file(&format!("{path}{GUARDED}"))) {
        (Some(first), Some(second)) => first == second,
        (None, Some(_)) => wanted.contains(*path),
        (_, None) => false,
    };
    let on_record = wanted.iter().map(String::as_str);
    let paths: BTreeSet<&str> = seen.layers.paths().into_iter().chain(on_record).collect();
    paths.into_iter().filter(is_guarded).map(str::to_owned).collect()
}

/// By a look of its own: the one from before may be older than the last operation.
fn clear_spare(hypervisor: &dyn Hypervisor, machines: &Machines, vm: VmId) -> Result<(), Error> {
    let seen = hypervisor.observe(vm, Reread::New);
    let seen = seen.map_err(|failure| failure.to_error(vm, None, "the machine cannot be read"))?;
    machines.owned().map_or(Ok(()), |owned| owned::clear_spare(hypervisor, owned, &seen))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use snapshot_core::layers::Layer;

    use super::*;
    use crate::owned::tests::seen;

    #[test]
    fn a_second_name_is_a_guard_only_of_the_same_file_or_of_one_on_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = seen(&[], &[]);
        let mut path = |name: &str, is_used: bool| {
            let path = dir.path().join(name).display().to_string();
            if is_used {
                seen.layers.files.insert(path.clone(), Layer::default());
            }
            path
        };
        let second = |path: &str| format!("{path}{GUARDED}");
        let (both, alone, other) = (path("both", true), path("alone", true), path("other", true));
        let (wanted, detached, none) = (path("wanted", true), path("detached", false), path("none", true));
        for file in [&both, &other, &detached] {
            fs::write(file, "").unwrap();
        }
        for file in [&both, &detached] {
            fs::hard_link(file, second(file)).unwrap();
        }
        for file in [&alone, &other, &wanted] {
            fs::write(second(file), "").unwrap();
        }
        let on_record = BTreeSet::from([wanted.clone(), detached.clone(), none]);
        assert_eq!(guarded(&seen, &on_record), [both, detached, wanted]);
    }
}
