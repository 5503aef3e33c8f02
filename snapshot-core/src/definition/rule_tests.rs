//! Rules whose conditions have several parts: each part decides.

use std::collections::BTreeSet;

use super::table::Table;
use super::tests::{disk, domain, element, of_device, of_disk, restricted, set, with_devices};
use super::*;
use crate::restriction::RestrictedOperation as Operation;

fn empty(name: &str, attributes: &[(&str, &str)]) -> Element {
    element(name, attributes, vec![])
}

#[test]
fn a_disk_with_external_snapshots_by_its_definition_has_them_where_the_guest_writes_to_it() {
    let external = ("snapshot", "external");
    let readonly = || vec![empty("readonly", &[])];
    assert_eq!(of_disk(&[external], readonly()), set(&[]));
    assert_eq!(of_disk(&[external, ("device", "cdrom")], vec![]), set(&[]));
    assert_eq!(of_disk(&[("snapshot", "no"), ("device", "cdrom")], readonly()), set(&[]));
}

#[test]
fn a_disk_is_on_this_host_or_is_a_drive_without_a_medium() {
    let restricted = set(&[
        Operation::CreateOffline,
        Operation::CreateWithMemory,
        Operation::CreateLive,
        Operation::CreateExternal,
        Operation::RevertInPlace,
    ]);
    let of = |device, children: Vec<Element>| {
        let target = empty("target", &[("dev", "sdz"), ("bus", "sata")]);
        let children = [children, vec![target]].concat();
        of_device(element("disk", &[("type", "network"), ("device", device)], children))
    };
    let source = || vec![empty("source", &[("protocol", "nbd"), ("name", "x")])];
    assert_eq!(of("cdrom", vec![]), set(&[]));
    assert_eq!(of("cdrom", source()), restricted);
    assert_eq!(of("disk", vec![]), restricted);
    assert_eq!(of("disk", source()), restricted);
}

#[test]
fn a_volume_has_no_external_snapshots() {
    assert_eq!(of_disk(&[("type", "volume")], vec![]), set(&[Operation::CreateExternal]));
    assert_eq!(of_disk(&[("type", "volume"), ("device", "cdrom")], vec![]), set(&[]));
}

#[test]
fn a_floppy_with_a_medium_is_read_only() {
    let floppy = |children: Vec<Element>| {
        let target = empty("target", &[("dev", "fda"), ("bus", "fdc")]);
        let children = [children, vec![target]].concat();
        of_device(element("disk", &[("type", "file"), ("device", "floppy")], children))
    };
    let medium = || empty("source", &[("file", "/images/f.img")]);
    assert!(floppy(vec![medium()]).is_superset(&set(&Operation::CREATE)));
    assert_eq!(floppy(vec![medium(), empty("readonly", &[])]), set(&[]));
    assert_eq!(floppy(vec![]), set(&[]));
}

#[test]
fn the_layout_of_a_disk_is_one_file_by_its_path() {
    let all = set(&Operation::CREATE_AND_REVERT);
    for name in ["slices", "dataStore", "reservations"] {
        let source = element("source", &[("file", "/x")], vec![empty(name, &[])]);
        assert_eq!(of_disk(&[], vec![source]), all, "{name}");
    }
    assert_eq!(of_disk(&[], vec![empty("source", &[("file", "/x"), ("fdgroup", "g")])]), all);
    let reserved = element("source", &[("file", "/x")], vec![empty("reservations", &[("managed", "yes")])]);
    let below = element("backingStore", &[("type", "file")], vec![reserved]);
    let found = restrictions(&with_devices(vec![disk("vdb", vec![below])]));
    assert!(found.iter().any(|one| one.message.contains("<reservations>")), "{found:?}");
}

#[test]
fn an_invariant_tsc_is_one_that_the_guest_gets_and_that_has_no_fixed_frequency() {
    let cpu = |attributes: &[(&str, &str)], name, policy| {
        element("cpu", attributes, vec![empty("feature", &[("policy", policy), ("name", name)])])
    };
    let of = |cpu: Element, timer: &[(&str, &str)]| {
        restricted(&restrictions(&domain(vec![cpu, element("clock", &[], vec![empty("timer", timer)])])))
    };
    let (memory, none, no_timer) = (set(&Operation::MEMORY), BTreeSet::new(), [("name", "hpet")]);
    let custom = [("mode", "custom")];
    assert_eq!(of(cpu(&custom, "invtsc", "require"), &no_timer), memory);
    assert_eq!(of(cpu(&custom, "invtsc", "disable"), &no_timer), none);
    assert_eq!(of(cpu(&custom, "vmx", "require"), &no_timer), none);
    let passed_through = [("mode", "host-passthrough"), ("migratable", "off")];
    assert_eq!(of(cpu(&passed_through, "vmx", "require"), &no_timer), memory);
    assert_eq!(of(cpu(&passed_through, "vmx", "require"), &[("name", "tsc"), ("frequency", "1")]), none);
    assert_eq!(of(cpu(&custom, "invtsc", "require"), &[("name", "tsc"), ("mode", "native")]), memory);
    assert_eq!(of(cpu(&custom, "invtsc", "require"), &[("name", "hpet"), ("frequency", "1")]), memory);
    let mut emulated = domain(vec![cpu(&custom, "invtsc", "require")]);
    emulated.attributes.insert("type".to_owned(), "qemu".to_owned());
    assert_eq!(restrictions(&emulated), []);
}

#[test]
fn a_restriction_says_what_can_be_done_about_it() {
    let told = |device| restrictions(&with_devices(vec![device]))[0].message.clone();
    let vsock = told(empty("vsock", &[("model", "virtio")]));
    assert!(vsock.ends_with(": reverts restart the QEMU process"), "{vsock}");
    let shared = told(empty("shmem", &[("name", "s")]));
    assert!(shared.ends_with(": take a snapshot of the disks alone, switch the VM off first, or remove the device"));
    let outside = told(element("memory", &[("model", "nvdimm")], vec![]));
    assert!(outside.ends_with(": remove it from the definition first"), "{outside}");
}

#[test]
fn what_is_not_known_in_a_disk_is_about_that_disk_and_nothing_after_it_is() {
    let devices = vec![disk("vdb", vec![empty("oldFuture", &[])]), empty("newFuture", &[])];
    let found = restrictions(&with_devices(devices));
    let [of_disk, of_vm] = &found[..] else { panic!("{found:?}") };
    assert_eq!(of_disk.disk.as_deref(), Some("vdb"));
    assert_eq!(of_disk.operations, set(&Operation::CREATE_AND_REVERT).into_iter().collect::<Vec<_>>());
    assert!(of_disk.message.starts_with("devices/disk/oldFuture of disk vdb "), "{of_disk:?}");
    assert_eq!(of_vm.disk, None);
    assert_eq!(restricted(std::slice::from_ref(of_vm)), set(&Operation::MEMORY));
    let mut odd = with_devices(vec![]);
    odd.attributes.insert("typeFuture".to_owned(), "x".to_owned());
    assert_eq!(restricted(&restrictions(&odd)), set(&Operation::MEMORY), "it is not the type of the domain");
}

#[test]
fn a_table_may_have_notes_and_empty_lines_anywhere() {
    let table = Table::parse([
        "domain type=kvm\n  first\n# A note\n\n  second own\n    +shared\n\n$shared\n  # more\n  third *\n",
    ]);
    let domain = table.domain().unwrap();
    let second = table.child(domain, "second").unwrap();
    assert!(table.child(domain, "first").is_some() && table.child(second, "third").is_some());
    assert!(table.child(domain, "#").is_none() && table.child(domain, "third").is_none());
    let third = table.child(second, "third").unwrap();
    assert!(table.child(third, "anything").is_some(), "an asterisk stands for all within");
}
