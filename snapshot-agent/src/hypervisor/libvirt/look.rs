//! Looks within bounds: each is a job of [`crate::bounded`], so that a VM whose storage or whose QEMU hangs holds up nobody else.
//!
//! 1. libvirt is asked, in a slot of a connection. A domain whose monitor has not answered for long is not asked at all.
//! 2. The images are read, without a slot.
//! 3. Where either does not return, or an access was refused because the storage hangs already, the look is
//!    [`Failure::Unresponsive`] and names what does not respond. What was found until then counts for nothing: an image that
//!    was not read says neither that a snapshot is there nor that it is lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use snapshot_core::Reason;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::vm::VmState;

use super::super::{Failure, Observed, Reread, Unresponsive, other_hosts};
use super::link::{Connection, Link};
use super::observe;
use super::written::Written;
use crate::beneath::{Beneath, out_of_reach};
use crate::bounded::{Doing, Stuck, jobs};

/// [`Reread`] for another thread.
enum Again {
    All,
    Some(BTreeSet<String>),
    One(SnapshotId),
    New,
}

impl From<Reread<'_>> for Again {
    fn from(reread: Reread<'_>) -> Self {
        match reread {
            Reread::All => Self::All,
            Reread::One(id) => Self::One(id.clone()),
            Reread::Some(names) => Self::Some(names.clone()),
            Reread::New => Self::New,
        }
    }
}

impl Again {
    fn reread(&self) -> Reread<'_> {
        match self {
            Self::All => Reread::All,
            Self::One(id) => Reread::One(id),
            Self::Some(names) => Reread::Some(names),
            Self::New => Reread::New,
        }
    }
}

pub(super) fn observe(
    looks: &Arc<Link>,
    written: &Arc<Written>,
    places: Option<&Arc<Beneath>>,
    vm: VmId,
    reread: Reread<'_>,
) -> Result<Observed, Failure> {
    let (link, written, again) = (Arc::clone(looks), Arc::clone(written), Again::from(reread));
    let places = places.cloned();
    let known = Arc::new(OnceLock::new());
    let found = Arc::clone(&known);
    let look = move || {
        let ask = |connection: &Connection| observe::ask(connection, vm, &written, again.reread());
        examined(|| {
            let told = link.look("observe", ask)?;
            let _ = found.set(told.name_and_state());
            Ok(within_reach(places.as_deref(), told.examine()))
        })
    };
    within_bounds(vm, &known, jobs::run(&vm.to_string(), look))
}

pub(super) fn observe_again(
    looks: &Arc<Link>,
    written: &Arc<Written>,
    places: Option<&Arc<Beneath>>,
    before: &Observed,
) -> Result<Observed, Failure> {
    let (link, written, before) = (Arc::clone(looks), Arc::clone(written), before.clone());
    let places = places.cloned();
    let (vm, known) = (before.vm.id, Arc::new(OnceLock::new()));
    let found = Arc::clone(&known);
    let look = move || {
        examined(|| {
            let told = link.look("observe_again", |connection| observe::ask_again(connection, &before, &written))?;
            let _ = found.set(told.name_and_state());
            Ok(within_reach(places.as_deref(), told.examine()))
        })
    };
    within_bounds(vm, &known, jobs::run(&vm.to_string(), look))
}

/// With what the places of its images make unavailable: those that the agent may not touch, and those that other hosts use.
fn within_reach(places: Option<&Beneath>, mut seen: Observed) -> Observed {
    let places = places.unwrap_or_else(|| Beneath::anywhere());
    out_of_reach::restrict(&mut seen.vm.restrictions, places, &seen.layers);
    if let Some(shared) = places.shared() {
        other_hosts::restrict(shared, &mut seen);
    }
    seen
}

/// Asks libvirt about a domain, and reads no images.
pub(super) fn of_vm<T: Send + 'static>(
    looks: &Arc<Link>,
    name: &'static str,
    vm: VmId,
    ask: impl Fn(&Connection) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let link = Arc::clone(looks);
    let result = jobs::run(&vm.to_string(), move || link.look(name, ask));
    result.unwrap_or_else(|stuck| Err(unresponsive(&stuck, None)))
}

/// What a look found, unless the storage of a file does not respond.
fn examined(look: impl FnOnce() -> Result<Observed, Failure>) -> Examined {
    let (observed, refused) = jobs::noting_refusals(look);
    match refused {
        None => Ok(Ok(observed?)),
        Some(path) => Ok(Err(Stuck { doing: Doing::File(path), since: Duration::ZERO })),
    }
}

type Examined = Result<Result<Observed, Stuck>, Failure>;

fn within_bounds(
    vm: VmId,
    known: &OnceLock<(String, VmState)>,
    result: Result<Examined, Stuck>,
) -> Result<Observed, Failure> {
    match result {
        Ok(Ok(Ok(observed))) => Ok(observed),
        Ok(Err(failure)) => Err(failure),
        Ok(Ok(Err(stuck))) | Err(stuck) => {
            tracing::debug!(%vm, ?stuck, "the VM does not respond");
            Err(unresponsive(&stuck, known.get().cloned()))
        }
    }
}

/// The failure that names what does not respond. Its message stays the same for as long as that is so.
pub(crate) fn unresponsive(stuck: &Stuck, known: Option<(String, VmState)>) -> Failure {
    let (reason, message) = match &stuck.doing {
        Doing::File(path) => (Reason::StorageUnresponsive, storage_message(path)),
        Doing::Nothing => {
            let message =
                "the storage of the VM does not respond; nothing was changed; the VM can be used again when it does";
            (Reason::StorageUnresponsive, message.to_owned())
        }
        Doing::Libvirt(_) | Doing::Slot => {
            let message = "libvirt does not answer for this VM: its QEMU process does not respond, or another tool's operation on it \
                           takes long; nothing was changed; the VM can be used again when libvirt answers";
            (Reason::HypervisorUnavailable, message.to_owned())
        }
    };
    let restriction = Restriction::new(RestrictedOperation::ALL, reason, message);
    Failure::Unresponsive(Box::new(Unresponsive { restriction, known }))
}

fn storage_message(path: &Path) -> String {
    format!(
        "the storage of {} does not respond; nothing was changed; the VM can be used again when the storage responds",
        path.display()
    )
}
