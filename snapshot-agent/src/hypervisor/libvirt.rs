//! The one implementation of [`Hypervisor`], and the only code that uses `virt`.
//!
//! Three connections: one for what changes a machine, one for what looks at it, and one that events arrive on. A call
//! that takes minutes then holds up neither the others nor the news. libvirt's own limit is five calls at a time on one
//! connection; [`link`] keeps to four.
//!
//! Any thread may call; each call blocks.

mod action;
mod activity;
mod clock;
mod definition;
mod event_loop;
mod external;
mod failure;
mod files;
mod freeze;
mod in_place;
mod link;
mod live;
mod look;
mod merge;
mod monitor;
mod news;
mod observe;
mod reached;
mod resources;
mod safety;
mod take_back;
mod volumes;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use snapshot_core::description::Label;
use snapshot_core::hardware::Comparison;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::layers::{Layers, Merge};
use snapshot_core::plan::{Freeze, PowerState, RevertedDefinition};
use snapshot_core::snapshot::SnapshotFacts;
use snapshot_core::vm::VmFacts;

use self::link::{Connection, Link};
pub(crate) use self::look::unresponsive;
use self::news::News;
use self::written::Written;
use super::images::free_bytes;
use super::inbox::Inbox;
use super::{Failure, Hypervisor, Load, NewExternal, Observed, Outline, Reread, Versions, Watch};
use crate::beneath::Beneath;
use crate::safety::{Held, Safety};

/// libvirt, by one URI.
pub struct Libvirt {
    actions: Link,
    looks: Arc<Link>,
    written: Arc<Written>,
    inbox: Arc<Inbox>,
    /// `None`: all there are.
    folders: Option<Arc<Beneath>>,
    _news: News,
}

impl Libvirt {
    /// Prepares to speak to libvirt. Connections are opened when they are needed and anew when they are lost; whether
    /// there is one now is told by [`Inbox::connected`].
    pub fn new(uri: &str) -> Result<Self, Failure> {
        Self::prepare(uri, None)
    }

    /// The same, where files are touched beneath these folders only.
    pub fn within(uri: &str, folders: Beneath) -> Result<Self, Failure> {
        Self::prepare(uri, Some(folders))
    }

    fn prepare(uri: &str, folders: Option<Beneath>) -> Result<Self, Failure> {
        event_loop::start()?;
        let inbox = Arc::new(Inbox::default());
        let news = News::start(uri, Arc::clone(&inbox))?;
        let link = || Link::new(uri, Arc::clone(&inbox));
        let (actions, looks, written) = (link(), Arc::new(link()), Arc::new(Written::default()));
        Ok(Self { actions, looks, written, inbox, folders: folders.map(Arc::new), _news: news })
    }

    /// Calls something that changes what is written about a snapshot; whatever it says, that has to be read again.
    fn rewriting(
        &self,
        vm: VmId,
        id: &SnapshotId,
        name: &'static str,
        call: impl Fn(&Connection) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let result = self.actions.act(name, call);
        self.written.changed(vm, id);
        result
    }
}

impl Hypervisor for Libvirt {
    fn vms(&self) -> Result<Vec<VmId>, Failure> {
        let vms = self.looks.look("list", observe::vms)?;
        self.written.keep(&vms);
        Ok(vms)
    }

    fn observe(&self, vm: VmId, reread: Reread<'_>) -> Result<Observed, Failure> {
        look::observe(&self.looks, &self.written, self.folders.as_ref(), vm, reread)
    }

    fn observe_again(&self, before: &Observed) -> Result<Observed, Failure> {
        look::observe_again(&self.looks, &self.written, self.folders.as_ref(), before)
    }

    fn outline(&self, vm: VmId) -> Result<Outline, Failure> {
        look::of_vm(&self.looks, "outline", vm, move |connection| observe::outline(connection, vm))
    }

    fn create_internal(&self, vm: &VmFacts, id: &SnapshotId, label: &Label, memory: bool) -> Result<(), Failure> {
        self.actions.act("create", |connection| action::create_internal(connection, vm, id, label, memory))
    }

    fn create_live(&self, vm: &VmFacts, id: &SnapshotId, label: &Label, quiesce: Freeze) -> Result<Duration, Failure> {
        live::create((&self.actions, &self.looks), vm, id, label, quiesce)
    }

    fn write_label(&self, vm: VmId, layers: &Layers, id: &SnapshotId, label: &Label) -> Result<(), Failure> {
        let write = |connection: &Connection| external::write_description(connection, vm, layers, id, &label.encode());
        self.rewriting(vm, id, "write_label", write)
    }

    fn revert_internal(&self, vm: VmId, id: &SnapshotId, then: PowerState) -> Result<(), Failure> {
        self.actions.act("revert", |connection| action::revert_internal(connection, vm, id, then))
    }

    fn check_revert(&self, vm: &VmFacts, id: &SnapshotId) -> Result<(), Failure> {
        let recorded = self.looks.look("check_revert", |connection| resources::check(connection, vm.id, id))?;
        safety::check_images(self.folders(), &recorded)
    }

    fn before_revert(&self, vm: VmId, id: &SnapshotId, tag: String) -> Result<Safety, Failure> {
        let before = |connection: &Connection| safety::before(connection, self.folders(), vm, id, tag.clone());
        self.looks.look("before_revert", before)
    }

    fn set_safety_tag(&self, vm: VmId, safety: &Safety) -> Result<(), Failure> {
        self.actions.act("set_safety_tag", |connection| safety::set(connection, self.folders(), vm, safety))
    }

    fn held(&self, _: VmId, safety: &Safety, id: &SnapshotId) -> Result<BTreeMap<String, Held>, Failure> {
        Ok(safety::held(safety, id))
    }

    fn restore_disks(&self, vm: VmId, safety: &Safety) -> Result<(), Failure> {
        self.actions.act("restore_disks", |connection| safety::restore(connection, self.folders(), vm, safety))
    }

    fn restore_definition(&self, vm: VmId, safety: &Safety) -> Result<bool, Failure> {
        self.actions.act("restore_definition", |connection| safety::restore_definition(connection, vm, safety))
    }

    fn remove_safety_tag(&self, vm: VmId, safety: &Safety) -> Result<(), Failure> {
        self.actions.act("remove_safety_tag", |connection| safety::remove(connection, self.folders(), vm, safety))
    }

    fn list_safety_tag(&self, vm: VmId, safety: &Safety, label: &Label) -> Result<(), Failure> {
        self.actions.act("list_safety_tag", |connection| safety::list(connection, vm, safety, label))
    }

    fn hardware(&self, vm: VmId, id: &SnapshotId) -> Result<Comparison, Failure> {
        let id = id.clone();
        look::of_vm(&self.looks, "hardware", vm, move |connection| in_place::hardware(connection, vm, &id))
    }

    fn reverted_definition(&self, vm: VmId, snapshot: &SnapshotFacts) -> Result<RevertedDefinition, Failure> {
        let snapshot = snapshot.clone();
        look::of_vm(&self.looks, "definition", vm, move |connection| definition::reverted(connection, vm, &snapshot))
    }

    fn load(&self, vm: &VmFacts, id: &SnapshotId, job: &str) -> Result<(), Failure> {
        self.actions.act("load", |connection| in_place::load(connection, vm, id, job))
    }

    fn loaded(&self, vm: VmId, job: &str) -> Result<Load, Failure> {
        self.actions.act("loaded", |connection| in_place::loaded(connection, vm, job))
    }

    fn forget_load(&self, vm: VmId, job: &str) -> Result<(), Failure> {
        self.actions.act("forget_load", |connection| in_place::forget(connection, vm, job))
    }

    fn make_current(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
        self.rewriting(vm, id, "make_current", |connection| action::make_current(connection, vm, id))
    }

    fn suspend(&self, vm: VmId) -> Result<(), Failure> {
        self.actions.act("suspend", |connection| action::suspend(connection, vm))
    }

    fn delete_internal(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
        self.rewriting(vm, id, "delete", |connection| action::delete_internal(connection, vm, id))
    }

    fn forget(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
        self.rewriting(vm, id, "forget", |connection| action::forget(connection, vm, id))
    }

    fn remove_stray(&self, vm: &VmFacts, id: &SnapshotId) -> Result<(), Failure> {
        self.rewriting(vm.id, id, "remove_stray", |connection| action::remove_stray(connection, self.folders(), vm, id))
    }

    fn create_external(&self, vm: &VmFacts, new: &NewExternal<'_>, watch: &dyn Watch) -> Result<(), Failure> {
        external::create(&self.actions, &self.looks, self.folders(), vm, new, watch)
    }

    fn take_back(&self, vm: &VmFacts, layers: &Layers, id: &SnapshotId, may_have_run: bool) -> Result<(), Failure> {
        take_back::take_back(&self.actions, self.folders(), vm, layers, id, may_have_run)
    }

    fn revert_external(&self, vm: VmId, layers: &Layers, id: &SnapshotId, then: PowerState) -> Result<(), Failure> {
        let revert = |connection: &Connection| external::revert(connection, vm, layers, id, then);
        let reverted = self.actions.act("revert_external", revert);
        // libvirt has written other overlays into some of them.
        layers.snapshots.keys().for_each(|id| self.written.changed(vm, id));
        reverted
    }

    fn mark_deleted(&self, vm: VmId, layers: &Layers, id: &SnapshotId) -> Result<(), Failure> {
        self.rewriting(vm, id, "mark_deleted", |connection| external::mark_deleted(connection, vm, layers, id))
    }

    fn commit(&self, vm: &VmFacts, layers: &Layers, merge: &Merge, watch: &dyn Watch) -> Result<(), Failure> {
        merge::commit((&self.actions, &self.looks), self.folders(), vm, layers, merge, watch)
    }

    fn redirect(&self, vm: &VmFacts, layers: &Layers, merge: &Merge) -> Result<(), Failure> {
        let redirect = |connection: &Connection| merge::redirect(connection, self.folders(), vm, layers, merge);
        let result = self.actions.act("redirect", redirect);
        layers.snapshots.keys().for_each(|id| self.written.changed(vm.id, id));
        result
    }

    fn elsewhere(&self, vm: VmId) -> Result<BTreeSet<String>, Failure> {
        files::elsewhere(&self.looks, self.folders.as_ref(), vm)
    }

    fn free_bytes(&self, path: &str) -> Option<u64> {
        free_bytes(Path::new(path))
    }

    fn guard(&self, paths: &[String]) -> Result<(), Failure> {
        files::guard(self.folders(), paths)
    }

    fn unguard(&self, paths: &[String]) -> Result<(), Failure> {
        files::unguard(self.folders(), paths)
    }

    fn unlink(&self, paths: &[String]) -> Result<(), Failure> {
        files::unlink(self.folders(), paths)
    }

    fn thaw(&self, vm: VmId) -> Result<(), Failure> {
        self.actions.act("thaw", |connection| freeze::thaw(connection, vm))
    }

    fn set_guest_clock(&self, vm: VmId) -> Result<(), Failure> {
        clock::set(&self.actions, vm)
    }

    fn is_busy(&self, vm: VmId) -> Result<bool, Failure> {
        look::of_vm(&self.looks, "job", vm, move |connection| external::is_busy(connection, vm))
    }

    fn start(&self, vm: VmId) -> Result<(), Failure> {
        self.actions.act("start", |connection| action::start(connection, vm))
    }

    fn power_off(&self, vm: VmId) -> Result<(), Failure> {
        self.actions.act("power_off", |connection| action::power_off(connection, vm))
    }

    fn resume(&self, vm: VmId) -> Result<(), Failure> {
        self.actions.act("resume", |connection| action::resume(connection, vm))
    }

    fn versions(&self) -> Result<Versions, Failure> {
        self.looks.look("versions", observe::versions)
    }

    fn folders(&self) -> &Beneath {
        self.folders.as_deref().unwrap_or_else(|| Beneath::anywhere())
    }

    fn inbox(&self) -> &Inbox {
        &self.inbox
    }
}
