//! Taking the disks of a machine that is on, without stopping it.
//!
//! 1. The node of each disk is asked of QEMU, which has to be on the files that libvirt has it on.
//! 2. Where that was asked for, the guest's file systems are frozen.
//! 3. One transaction of QEMU's takes all disks inside their images, at one moment: all of them or none. A guest that
//!    writes waits for it, for some milliseconds; one that does not, does not notice.
//! 4. They are thawed.
//! 5. libvirt is told of the snapshot: as of one that was taken while the machine was off, since it has no other words for
//!    disks without memory inside images. With them its own revert and deletion work. That the machine was on, and how consistent
//!    the disks are, stands in the label.
//!
//! Whoever dies between 3 and 5 leaves a snapshot in the images that libvirt does not list. The caller removes it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::plan::Freeze;
use snapshot_core::snapshot::Consistency;
use snapshot_core::vm::VmFacts;
use snapshot_core::{Error, Reason};
use virt::domain::Domain;
use virt_sys as sys;

use super::super::snapshot_write::Taken;
use super::super::{Failure, domain_xml, snapshot_write};
use super::freeze::Frozen;
use super::link::Link;
use super::{monitor, observe, volumes};
use crate::clock::unix_now;

pub(super) fn create(
    (actions, looks): (&Link, &Link),
    vm: &VmFacts,
    id: &SnapshotId,
    label: &Label,
    quiesce: Freeze,
) -> Result<Duration, Failure> {
    let targets: Vec<&str> = vm.writable_disks().map(|disk| disk.target.as_str()).collect();
    let domain = actions.act("live_nodes", |connection| domain_xml_of(&*connection.domain(vm.id)?, vm))?;
    let begun = Instant::now();
    let mut held_up = Duration::ZERO;
    let mut transact = || {
        let start = Instant::now();
        let done = actions.act("live_transaction", |connection| {
            let domain = connection.domain(vm.id)?;
            let nodes = monitor::nodes(&domain, &targets)?;
            let action = |node| json!({ "type": "blockdev-snapshot-internal-sync", "data": { "device": node, "name": id.as_str() } });
            let actions: Vec<Value> = nodes.values().map(action).collect();
            let _: Value = monitor::ask(&domain, "transaction", json!({ "actions": actions }))?;
            Ok(())
        });
        held_up = start.elapsed();
        done
    };
    let consistency = if quiesce == Freeze::No {
        transact()?;
        Consistency::Crash
    } else {
        match Frozen::begin(actions, looks, vm.id) {
            Ok(frozen) => match (frozen.during(&mut transact), quiesce) {
                (Ok(()), _) => {
                    held_up = begun.elapsed();
                    Consistency::FileSystem
                }
                // Taken, and perhaps after the thaw.
                (Err(Failure::FreezeLost(why)), Freeze::IfPossible) => without_freeze(&why),
                (Err(failure), _) => return Err(failure),
            },
            Err(Failure::Precondition(why) | Failure::FreezeLost(why)) if quiesce == Freeze::IfPossible => {
                transact()?;
                without_freeze(&why)
            }
            Err(failure) => return Err(failure),
        }
    };
    let label = Label { disks: Some(consistency), ..label.clone() };
    actions.act("live_adopt", |connection| {
        let virtual_machine = connection.domain(vm.id)?;
        let parent = observe::current_name(&virtual_machine)?;
        let taken = Taken { id, label: &label, parent: parent.as_deref(), create_time: unix_now() };
        let xml = snapshot_write::taken(&taken, targets.iter().copied(), &domain)?;
        let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | sys::VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT;
        virtual_machine.create_snapshot_xml(&xml, flags)?;
        Ok(())
    })?;
    Ok(held_up)
}

fn without_freeze(why: &Error) -> Consistency {
    tracing::warn!(%why, "the guest's file systems were not frozen; the snapshot is as after a power cut");
    match why.reason() {
        Reason::GuestAgentAbsent => Consistency::CrashNoAgent,
        Reason::GuestAgentSilent if why.metadata().contains_key("agent") => Consistency::CrashNoAgent,
        _ => Consistency::CrashFreezeTimeout,
    }
}

/// What the machine boots as from this snapshot: its definition, where that has these disks. Where disks came or went
/// since the machine was started, it is what the machine is now: the definition would boot without a disk that is in it.
fn domain_xml_of(domain: &Domain, vm: &VmFacts) -> Result<String, Failure> {
    let defined = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE)?;
    let files = |xml: &domain_xml::Domain| -> Vec<_> {
        let disks = xml.disks().filter(|disk| !disk.read_only);
        disks.map(|disk| (disk.target, disk.path.map(|path| path.display().to_string()))).collect()
    };
    let on: Vec<_> = vm.writable_disks().map(|disk| (disk.target.clone(), Some(disk.path.clone()))).collect();
    if files(&volumes::parse(domain, &defined)?) == on {
        return Ok(defined);
    }
    Ok(domain.xml_desc(sys::VIR_DOMAIN_XML_MIGRATABLE | sys::VIR_DOMAIN_XML_SECURE)?)
}
