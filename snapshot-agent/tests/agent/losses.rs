//! What a plan says that a revert changes, held against what libvirt's revert then does to real VMs.

use std::process::Command;

use snapshot_agent::hypervisor::{Hypervisor, Reread};
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::plan::{PowerState, RevertedDefinition};
use snapshot_core::text::{Description, DisplayName};
use uuid::Uuid;

use crate::guest::{Guest, HOST};

const CARD: &str = "52:54:00:00:14:01";
const SECOND: &str = "52:54:00:00:14:02";

fn card(mac: &str, more: &str) -> String {
    format!("<interface type='user'><mac address='{mac}'/><model type='virtio'/>{more}</interface>")
}

fn label() -> Label {
    Label {
        display_name: DisplayName::parse("before").unwrap(),
        description: Description::default(),
        protected: false,
        actor: "ravada/alice".to_owned(),
        issuer: "ravada".to_owned(),
        disks: None,
    }
}

fn take(guest: &Guest, memory: bool) -> SnapshotId {
    let id = SnapshotId::from_uuid(Uuid::now_v7());
    let seen = HOST.libvirt.observe(guest.vm, Reread::New).unwrap();
    HOST.libvirt.create_internal(&seen.vm, &id, &label(), memory).unwrap();
    id
}

fn told(guest: &Guest, id: &SnapshotId) -> RevertedDefinition {
    let seen = HOST.libvirt.observe(guest.vm, Reread::New).unwrap();
    HOST.libvirt.reverted_definition(guest.vm, seen.snapshot(id).unwrap()).unwrap()
}

fn changes(guest: &Guest, id: &SnapshotId) -> Vec<String> {
    told(guest, id).changes.iter().map(ToString::to_string).collect()
}

/// The definition by which it starts the next time. 2 is INACTIVE.
fn definition(guest: &Guest) -> String {
    guest.domain().xml_desc(2).unwrap()
}

/// Redefines the VM, each first text replaced by the second.
fn redefine(guest: &Guest, edits: &[(&str, &str)]) {
    let mut xml = definition(guest);
    for (from, to) in edits {
        assert!(xml.contains(from), "{from} is not in {xml}");
        xml = xml.replacen(from, to, 1);
    }
    guest.define(&xml);
}

#[test]
fn case_9_every_change_of_the_definition_is_told_by_name_and_value() {
    let guest = Guest::on(&HOST.host, 2, &card(CARD, "<link state='up'/>"));
    guest.start();
    guest.write('A');
    HOST.libvirt.power_off(guest.vm).unwrap();
    let id = take(&guest, false);
    assert_eq!(changes(&guest, &id), [""; 0], "nothing has changed yet");
    let before = definition(&guest);
    redefine(
        &guest,
        &[
            ("16384</memory>", "65536</memory>"),
            ("16384</currentMemory>", "65536</currentMemory>"),
            (">1</vcpu>", ">4</vcpu>"),
            ("<memory ", "<title>Room 12</title><description>isolated</description><memory "),
            ("<link state='up'/>", "<link state='down'/>"),
            ("</devices>", &format!("{}<watchdog model='i6300esb' action='reset'/></devices>", card(SECOND, ""))),
            ("<boot order='2'/>", "<boot order='3'/>"),
            ("<on_crash>destroy", "<on_crash>restart"),
        ],
    );
    let image = guest.dir.join("vda.qcow2");
    assert!(Command::new("qemu-img").args(["resize", "-q"]).arg(&image).arg("128M").status().unwrap().success());
    let told = changes(&guest, &id);
    for expected in [
        "disk vda shrinks: 128 MiB \u{2192} 64 MiB",
        "memory: 64 MiB \u{2192} 16 MiB",
        "vCPUs: 4 \u{2192} 1",
        "title (Room 12) is removed",
        "description (isolated) is removed",
        "on_crash: restart \u{2192} destroy",
        "disk vdb: boot order: 3 \u{2192} 2",
    ] {
        assert!(told.iter().any(|change| change == expected), "{expected} is not in {told:#?}");
    }
    assert!(told.contains(&format!("network card {CARD}: link: down \u{2192} up")), "{told:#?}");
    assert!(told.iter().any(|change| change.starts_with(&format!("network card {SECOND} "))), "{told:#?}");
    assert!(told.iter().any(|change| change.starts_with("watchdog i6300esb ")), "{told:#?}");

    // libvirt does what was told, and nothing else: the definition is the one of then.
    HOST.libvirt.revert_internal(guest.vm, &id, PowerState::Running).unwrap();
    assert_eq!(guest.report().disk, 'A');
    HOST.libvirt.power_off(guest.vm).unwrap();
    assert_eq!(definition(&guest), before);
    assert_eq!(changes(&guest, &id), [""; 0]);
    let size = HOST.libvirt.observe(guest.vm, Reread::New).unwrap().vm.disks[0].capacity_bytes;
    assert_eq!(size, 64 << 20);
}

#[test]
fn case_9_a_device_that_was_plugged_into_the_process_alone_is_told() {
    let guest = Guest::on(&HOST.host, 1, &card(CARD, ""));
    guest.start();
    guest.write('A');
    let id = take(&guest, true);
    assert_eq!(changes(&guest, &id), [""; 0]);
    // 1 is LIVE. The guest's PCI bus takes nothing while it runs, its USB bus does.
    guest.domain().attach_device_flags("<input type='tablet' bus='usb'/>", 1).unwrap();
    let told = changes(&guest, &id);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].starts_with("input tablet") && told[0].ends_with("is removed"), "{told:?}");
    HOST.libvirt.revert_internal(guest.vm, &id, PowerState::Running).unwrap();
    assert!(!guest.domain().xml_desc(0).unwrap().contains("tablet"));
    assert_eq!((guest.report().disk, guest.report().ram), ('A', 'A'));
    assert_eq!(changes(&guest, &id), [""; 0]);
}

#[test]
fn case_9_a_password_that_would_come_back_is_told_and_not_shown() {
    let screen = "<graphics type='vnc' port='-1' autoport='yes' passwd='0ldpass'><listen type='none'/></graphics>";
    let guest = Guest::on(&HOST.host, 1, screen);
    let id = take(&guest, false);
    // 1 is SECURE.
    let xml = guest.domain().xml_desc(1 | 2).unwrap().replace("0ldpass", "n3wpass");
    guest.define(&xml);
    let told = changes(&guest, &id);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("password") && !told[0].contains("pass'") && !told[0].contains("0ld"), "{told:?}");
    assert!(!told[0].contains("n3w"), "{told:?}");
}

#[test]
fn case_9_an_emulated_tpm_is_noticed() {
    let guest = Guest::on(&HOST.host, 1, "");
    let id = take(&guest, false);
    assert!(!told(&guest, &id).has_tpm);
    let tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm></devices>";
    redefine(&guest, &[("</devices>", tpm)]);
    let with = told(&guest, &id);
    assert!(with.has_tpm);
    assert!(with.changes.iter().any(|change| change.what.starts_with("TPM")), "{with:?}");
    let id = take(&guest, false);
    let same = told(&guest, &id);
    assert!(same.has_tpm && same.changes.is_empty(), "{same:?}");
}
