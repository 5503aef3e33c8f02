//! Listing orphans, and deleting one ([`crate::owned::orphans`]).
//!
//! A listing reads storage and changes nothing; which VMs use a file is taken from the looks at them, so that it costs no look of its own.
//!
//! A deletion has its VM for itself, as an operation has, and trusts no listing:
//!
//! 1. The VM is looked at, which brings the record up to date; one that does not exist is judged by the record alone.
//! 2. The file must be an orphan still, and the one of the etag.
//! 3. The definitions and snapshots of all VMs, the images in directories, and the processes of the host are asked for who needs it. Where
//!    one of them cannot be asked, nothing is deleted.
//! 4. A use of the token is taken. The file is removed, its directory synced, and the record forgets it.
//!
//! Ended anywhere, the file is there and on record, or it is gone; then the next look forgets it. No journal is needed.

use std::ops::Bound;
use std::sync::Arc;

use snapshot_core::authority::AdminPermit;
use snapshot_core::ids::{OperationId, OrphanId, VmId};
use snapshot_core::{Error, Reason};
use uuid::Uuid;

use super::{Executor, Shared, blocking};
use crate::bounded::{Doing, Stuck, jobs};
use crate::hypervisor::{Failure, Observed, Reread};
use crate::owned::Owned;
use crate::owned::orphans::{
    OnRecord, Orphan, Surroundings, changed, examine, examine_anew, images_around, is_in_use, silent_around,
};

/// What is to be deleted, and how.
#[derive(Debug, Clone)]
pub(crate) struct OrphanDeletion {
    /// The id of the orphan.
    pub(crate) id: OrphanId,
    /// The etag of the listing.
    pub(crate) etag: String,
    /// Whether only the checks are made.
    pub(crate) validate_only: bool,
}

impl Executor {
    /// Orphans after an id, in the order of ids, as many as asked for.
    pub(crate) async fn list_orphans(
        &self,
        _permit: &AdminPermit,
        after: Option<OrphanId>,
        count: usize,
    ) -> Result<Vec<Orphan>, Error> {
        let shared = Arc::clone(&self.shared);
        let _turn = self.shared.plans.acquire().await;
        blocking(move || Ok(shared.list(after, count))).await
    }

    /// Deletes an orphan, and tells what it was.
    pub(crate) async fn delete_orphan(&self, permit: &AdminPermit, deletion: OrphanDeletion) -> Result<Orphan, Error> {
        if self.shared.stopping.is_cancelled() {
            return Err(Error::new(Reason::ShuttingDown, "the agent is stopping"));
        }
        let operation = OperationId::from_uuid(Uuid::now_v7());
        let guard = self.shared.locks.take(self.shared.orphan(deletion.id)?.vm, operation)?;
        let (shared, permit) = (Arc::clone(&self.shared), permit.clone());
        let run = move || {
            let about = format!("orphan {}", deletion.id);
            let key = about.clone();
            let deleted = jobs::run(&about, move || {
                // Held as long as the job runs, also when nobody waits for it any more.
                let _guard = guard;
                shared.delete(&permit, operation, &deletion, &|| jobs::stuck(&key).is_some())
            });
            let tail = "whether the orphan is deleted is not known: list the orphans again when it responds";
            deleted.unwrap_or_else(|stuck| Err(unresponsive(&stuck, tail)))
        };
        // Finished whatever becomes of the caller, and waited for at the end of the process.
        let deleted = self.shared.tasks.spawn(blocking(run)).await;
        deleted.unwrap_or_else(|_| Err(Error::new(Reason::Internal, "the agent failed; its log says how")))
    }
}

impl Shared {
    fn orphan(&self, id: OrphanId) -> Result<OnRecord, Error> {
        let mut all = self.machines.owned().map(Owned::orphans).unwrap_or_default();
        all.remove(&id).ok_or_else(|| {
            let message = "no such orphan: it was deleted, or is used again; list the orphans again";
            Error::new(Reason::OrphanNotFound, message).with("orphan", id.to_string())
        })
    }

    /// Each is looked at by a job of its own, so that storage which hangs is told of its own orphans alone.
    fn list(self: &Arc<Self>, after: Option<OrphanId>, count: usize) -> Vec<Orphan> {
        let all = self.machines.owned().map(Owned::orphans).unwrap_or_default();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let page: Vec<OnRecord> = all.range((from, Bound::Unbounded)).take(count).map(|(_, it)| it.clone()).collect();
        if page.is_empty() {
            return Vec::new();
        }
        let tail = "so it is not known what needs the orphan";
        let (shared, around) = (Arc::clone(self), page.clone());
        // Both are asked once for all of them: other hosts take their time.
        let around = jobs::run("images around orphans", move || {
            let directories = shared.hypervisor.folders();
            (images_around(directories, &around), silent_around(directories, &around))
        });
        let unknown = |stuck| (Err(unresponsive(&stuck, tail)), Err(unresponsive(&stuck, tail)));
        let around = Arc::new(around.unwrap_or_else(unknown));
        let look = |on_record: OnRecord| {
            let (shared, around, known) = (Arc::clone(self), Arc::clone(&around), on_record.clone());
            let looked = jobs::run(&format!("listing of orphan {}", on_record.id), move || {
                let vm = known.vm;
                let user = |path: &str, _: (u64, u64)| shared.machines.other_user(vm, path);
                let directories = shared.hypervisor.folders();
                let (images, silent) = &*around;
                examine(known, &Surroundings { directories, images, silent, user: &user, is_open: is_in_use })
            });
            looked.unwrap_or_else(|stuck| Orphan::unknown(on_record, Some(unresponsive(&stuck, tail))))
        };
        page.into_iter().map(look).collect()
    }

    fn delete(
        &self,
        permit: &AdminPermit,
        operation: OperationId,
        deletion: &OrphanDeletion,
        is_given_up: &dyn Fn() -> bool,
    ) -> Result<Orphan, Error> {
        let id = deletion.id;
        let vm = self.orphan(id)?.vm;
        let owned = self.machines.owned().ok_or_else(|| Error::new(Reason::Internal, "nothing is on record"))?;
        let named = |error: Error| error.with("orphan", id.to_string()).with("vm", proto::names::vm(vm));
        let seen = self.look_for_orphan(vm).map_err(named)?;
        let name_of = |path: &str| self.machines.other_user(vm, path);
        let orphan = examine_anew(&*self.hypervisor, self.orphan(id)?, seen.as_ref(), &name_of).map_err(named)?;
        if let Some(refusal) = &orphan.refusal {
            return Err(named(refusal.clone()));
        }
        if orphan.etag != deletion.etag {
            return Err(named(changed(id, &orphan.on_record.path)));
        }
        if deletion.validate_only {
            return Ok(orphan);
        }
        if is_given_up() {
            let message = "it took too long to find out what needs the orphan; nothing was deleted";
            return Err(named(Error::new(Reason::StorageUnresponsive, message)));
        }
        self.spent.take_for(permit.actor(), operation, permit.destructive_uses())?;
        if let Err(error) = orphan.remove(&*self.hypervisor, owned, &deletion.etag) {
            self.spent.give_back(operation);
            return Err(named(error));
        }
        let (path, bytes) = (orphan.on_record.path.display(), orphan.allocation_bytes);
        tracing::info!(%vm, %id, %path, bytes, actor = %permit.actor(), "orphan deleted");
        match &seen {
            Some(seen) => self.machines.saw(seen),
            None => owned.weigh(vm, None),
        }
        Ok(orphan)
    }

    /// Looks at the VM of an orphan, which brings the record up to date; `None` when there is no such VM.
    fn look_for_orphan(&self, vm: VmId) -> Result<Option<Observed>, Error> {
        let seen = match self.hypervisor.observe(vm, Reread::All) {
            Ok(seen) => seen,
            Err(Failure::VmGone) => return Ok(None),
            Err(failure) => return Err(failure.to_error(vm, None, "the VM could not be read; nothing was deleted")),
        };
        if let Some(path) = &seen.layers.unreadable {
            let message = "an image of the VM cannot be read, so it is not known what it needs; nothing was deleted";
            return Err(Error::new(Reason::ImageUnavailable, message).with("path", path));
        }
        self.machines.saw(&seen);
        Ok(Some(seen))
    }
}

fn unresponsive(stuck: &Stuck, tail: &str) -> Error {
    let (reason, what) = match &stuck.doing {
        Doing::File(path) => {
            (Reason::StorageUnresponsive, format!("the storage of {} does not respond", path.display()))
        }
        Doing::Nothing => (Reason::StorageUnresponsive, "the storage of the orphan does not respond".to_owned()),
        Doing::Libvirt(_) | Doing::Slot => (Reason::HypervisorUnavailable, "libvirt does not answer".to_owned()),
    };
    Error::new(reason, format!("{what}; {tail}"))
}
