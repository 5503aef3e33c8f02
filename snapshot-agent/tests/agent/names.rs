//! Which names of other tools' snapshots QEMU takes for what: the planner's rule, asked of the real libvirt.

use std::fs;

use snapshot_agent::hypervisor::{Failure, Hypervisor, Observed, Reread};
use snapshot_core::Reason;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{DeleteScope, Request, RunAfter};
use snapshot_core::plan::{PowerState, Situation, plan};
use snapshot_core::policy::HostPolicy;
use snapshot_core::tree::SnapshotTree;
use snapshot_core::vm::VmState;
use virt::domain::Domain;

use crate::guest::{Guest, HOST};

/// The first fits.
const NAMES: [&str; 4] = ["fine.name_1-A", "before exam", "caf\u{e9}", "two\nlines"];

fn xml(name: &str) -> String {
    // A line end in an attribute or a text of XML is a space unless it is written so.
    format!("<domainsnapshot><name>{}</name></domainsnapshot>", name.replace('\n', "&#10;"))
}

fn look(guest: &Guest) -> Observed {
    HOST.libvirt.observe(guest.vm, Reread::All).unwrap()
}

/// What the planner says to a request, by the machine as it is.
fn planned(guest: &Guest, request: &Request) -> Result<(), Reason> {
    let seen = look(guest);
    let tree = SnapshotTree::new(seen.snapshots.iter().cloned()).unwrap();
    let policy = HostPolicy::default();
    let situation = Situation { vm: &seen.vm, tree: &tree, layers: &seen.layers, policy: &policy };
    plan(situation, request).map(drop).map_err(|error| error.reason())
}

fn deletion(id: &SnapshotId) -> Request {
    Request::Delete { snapshot: id.clone(), scope: DeleteScope::Only, force: false }
}

fn revert(id: &SnapshotId) -> Request {
    Request::Revert { snapshot: id.clone(), run_after: RunAfter::AsRecorded, save_current: None }
}

/// The planner and libvirt say the same; where it is no, it is for the name.
fn agree(name: &str, what: &str, planned: Result<(), Reason>, done: &Result<(), Failure>) -> bool {
    assert_eq!(planned.is_ok(), done.is_ok(), "{what} of {name:?}: {planned:?}, {done:?}");
    if let (Err(reason), Err(failure)) = (planned, done) {
        assert_eq!(reason, Reason::SnapshotNameUnsupported, "{what} of {name:?}");
        assert!(failure.to_string().contains("Invalid job ID"), "{what} of {name:?}: {failure}");
    }
    done.is_ok()
}

#[test]
fn the_planner_knows_which_names_qemu_takes_for_a_deletion() {
    let mut refused = Vec::new();
    for name in NAMES {
        let (guest, id) = (Guest::new(2), SnapshotId::of_name(name));
        guest.start();
        guest.write('A');
        for state in [VmState::Running, VmState::Paused] {
            if look(&guest).snapshot(&id).is_none() {
                HOST.libvirt.power_off(guest.vm).unwrap();
                guest.domain().create_snapshot_xml(&xml(name), 0).unwrap();
                guest.start();
            }
            // Going back to disks alone is no matter of names.
            guest.write('B');
            assert_eq!(planned(&guest, &revert(&id)), Ok(()), "{name:?}");
            HOST.libvirt.revert_internal(guest.vm, &id, PowerState::Running).unwrap();
            assert_eq!(guest.report().disk, 'A', "{name:?}");
            if state == VmState::Paused {
                guest.domain().suspend().unwrap();
            }
            let said = planned(&guest, &deletion(&id));
            let done = HOST.libvirt.delete_internal(guest.vm, &id);
            if !agree(name, "the deletion", said, &done) {
                refused.push(name);
                let seen = look(&guest);
                assert!(seen.has_whole(&id) && seen.vm.state == state, "nothing was changed: {seen:?}");
            }
            if state == VmState::Paused {
                guest.domain().resume().unwrap();
            }
            assert_eq!(guest.report().disk, 'A');
        }
        HOST.libvirt.power_off(guest.vm).unwrap();
        if look(&guest).snapshot(&id).is_some() {
            assert_eq!(planned(&guest, &deletion(&id)), Ok(()), "{name:?}");
            HOST.libvirt.delete_internal(guest.vm, &id).unwrap();
        }
        let seen = look(&guest);
        assert!(seen.snapshots.is_empty() && seen.strays.is_empty(), "{name:?}: {seen:?}");
    }
    refused.dedup();
    assert_eq!(refused, NAMES[1..], "the test sees both sides");
}

/// A running state under another name of the same length, as an older libvirt would have saved it.
fn with_running_state(guest: &Guest, name: &str) {
    guest.start();
    guest.write('A');
    let stand_in: String = "Zq9-xK_".chars().cycle().take(name.len()).collect();
    guest.domain().create_snapshot_xml(&xml(&stand_in), 0).unwrap();
    HOST.libvirt.power_off(guest.vm).unwrap();
    let written = Domain::lookup_snapshot_by_name(&guest.domain(), &stand_in, 0).unwrap();
    let told = written.xml_desc(0).unwrap();
    // METADATA_ONLY.
    written.delete(2).unwrap();
    for image in ["vda.qcow2", "vdb.qcow2"].map(|image| guest.dir.join(image)) {
        let mut bytes = fs::read(&image).unwrap();
        let place = bytes.windows(name.len()).position(|window| window == stand_in.as_bytes()).unwrap();
        bytes[place..place + name.len()].copy_from_slice(name.as_bytes());
        fs::write(&image, bytes).unwrap();
    }
    let line = |name: &str| format!("<name>{}</name>", name.replace('\n', "&#10;"));
    let renamed = told.replacen(&line(&stand_in), &line(name), 1);
    assert_ne!(renamed, told);
    // REDEFINE and CURRENT.
    guest.domain().create_snapshot_xml(&renamed, 1 | 2).unwrap();
}

#[test]
fn the_planner_knows_which_names_qemu_takes_for_a_running_state() {
    let mut refused = Vec::new();
    for name in NAMES {
        let (guest, id) = (Guest::new(2), SnapshotId::of_name(name));
        with_running_state(&guest, name);
        assert!(look(&guest).has_whole(&id), "{:?}", look(&guest));
        for on in [true, false] {
            if on {
                guest.start();
                guest.write('B');
            } else {
                HOST.libvirt.power_off(guest.vm).unwrap();
            }
            let said = planned(&guest, &revert(&id));
            let done = HOST.libvirt.revert_internal(guest.vm, &id, PowerState::Running);
            if agree(name, "the revert", said, &done) {
                let report = guest.report();
                assert_eq!((report.disk, report.ram), ('A', 'A'), "{name:?}");
            } else {
                refused.push(name);
                assert_eq!(look(&guest).vm.state, VmState::Shutoff, "why it must not be tried: it is dead now");
            }
        }
        HOST.libvirt.power_off(guest.vm).unwrap();
        assert_eq!(planned(&guest, &deletion(&id)), Ok(()), "{name:?}");
        HOST.libvirt.delete_internal(guest.vm, &id).unwrap();
    }
    refused.dedup();
    assert_eq!(refused, NAMES[1..], "the test sees both sides");
}
