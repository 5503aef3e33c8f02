//! The one implementation of [`Hypervisor`], and the only code that uses `virt`.
//!
//! Three connections: one for what changes a machine, one for what looks at it, and one that events arrive on. A call
//! that takes minutes then holds up neither the others nor the news. libvirt's own limit is five calls at a time on one
//! connection; [`link`] keeps to four.
//!
//! Any thread may call; each call blocks.

mod action;
mod event_loop;
mod failure;
mod link;
mod news;
mod observe;

use std::sync::Arc;

use snapshot_core::description::Label;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::plan::PowerState;
use snapshot_core::vm::VmFacts;

use self::link::Link;
use self::news::News;
use super::inbox::Inbox;
use super::{Failure, Hypervisor, Observed, Outline, Versions};

/// libvirt, by one URI.
pub struct Libvirt {
    actions: Link,
    looks: Link,
    inbox: Arc<Inbox>,
    _news: News,
}

impl Libvirt {
    /// Prepares to speak to libvirt. Connections are opened when they are needed and anew when they are lost; whether
    /// there is one now is told by [`Inbox::connected`].
    pub fn new(uri: &str) -> Result<Self, Failure> {
        event_loop::start()?;
        let inbox = Arc::new(Inbox::default());
        let news = News::start(uri, Arc::clone(&inbox))?;
        Ok(Self { actions: Link::new(uri), looks: Link::new(uri), inbox, _news: news })
    }
}

impl Hypervisor for Libvirt {
    fn vms(&self) -> Result<Vec<VmId>, Failure> {
        self.looks.look("list", observe::vms)
    }

    fn observe(&self, vm: VmId) -> Result<Observed, Failure> {
        self.looks.look("observe", |connection| observe::observe(connection, vm))
    }

    fn outline(&self, vm: VmId) -> Result<Outline, Failure> {
        self.looks.look("outline", |connection| observe::outline(connection, vm))
    }

    fn create_internal(&self, vm: &VmFacts, id: &SnapshotId, label: &Label, memory: bool) -> Result<(), Failure> {
        self.actions.act("create", |connection| action::create_internal(connection, vm, id, label, memory))
    }

    fn write_label(&self, vm: VmId, id: &SnapshotId, label: &Label) -> Result<(), Failure> {
        self.actions.act("write_label", |connection| action::write_label(connection, vm, id, label))
    }

    fn revert_internal(&self, vm: VmId, id: &SnapshotId, then: PowerState) -> Result<(), Failure> {
        self.actions.act("revert", |connection| action::revert_internal(connection, vm, id, then))
    }

    fn delete_internal(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
        self.actions.act("delete", |connection| action::delete_internal(connection, vm, id))
    }

    fn forget(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
        self.actions.act("forget", |connection| action::forget(connection, vm, id))
    }

    fn remove_stray(&self, vm: &VmFacts, id: &SnapshotId) -> Result<(), Failure> {
        self.actions.act("remove_stray", |connection| action::remove_stray(connection, vm, id))
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

    fn inbox(&self) -> &Inbox {
        &self.inbox
    }
}
