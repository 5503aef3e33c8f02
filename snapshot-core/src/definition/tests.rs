use std::collections::BTreeSet;

use proptest::prelude::*;

use super::table::{TABLE, Table};
use super::*;
use crate::restriction::{self, RestrictedOperation as Operation};

/// An element with attributes and children.
pub(super) fn element(name: &str, attributes: &[(&str, &str)], children: Vec<Element>) -> Element {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Element { name: name.to_owned(), attributes, text: String::new(), children }
}

/// A VM with these elements in `<devices>` beside what every VM has.
pub(super) fn with_devices(devices: Vec<Element>) -> Element {
    let mut all = vec![disk("vda", vec![])];
    all.extend(devices);
    domain(vec![element("devices", &[], all)])
}

pub(super) fn domain(children: Vec<Element>) -> Element {
    let mut all = vec![
        element("name", &[], vec![]),
        element("memory", &[("unit", "KiB")], vec![]),
        element("os", &[], vec![element("type", &[("arch", "x86_64"), ("machine", "pc")], vec![])]),
        element("metadata", &[], vec![element("any:thing", &[("x", "y")], vec![element("other", &[], vec![])])]),
    ];
    all.extend(children);
    element(
        "domain",
        &[("type", "kvm"), ("id", "1"), ("xmlns:qemu", "http://libvirt.org/schemas/domain/qemu/1.0")],
        all,
    )
}

pub(super) fn disk(target: &str, more: Vec<Element>) -> Element {
    let mut children = vec![
        element("driver", &[("name", "qemu"), ("type", "qcow2")], vec![]),
        element("source", &[("file", "/images/a.qcow2"), ("index", "1")], vec![]),
        element("target", &[("dev", target), ("bus", "virtio")], vec![]),
    ];
    children.extend(more);
    element("disk", &[("type", "file"), ("device", "disk")], children)
}

pub(super) fn restricted(restrictions: &[Restriction]) -> BTreeSet<Operation> {
    Operation::ALL.into_iter().filter(|operation| restriction::first(restrictions, *operation).is_some()).collect()
}

/// The operations that one device beside an ordinary disk restricts.
pub(super) fn of_device(device: Element) -> BTreeSet<Operation> {
    restricted(&restrictions(&with_devices(vec![device])))
}

/// The operations that an element within a disk restricts, with the reason.
pub(super) fn of_disk(attributes: &[(&str, &str)], more: Vec<Element>) -> BTreeSet<Operation> {
    let mut odd = disk("vdb", more);
    for (name, value) in attributes {
        odd.attributes.insert((*name).to_owned(), (*value).to_owned());
    }
    let found = restrictions(&with_devices(vec![odd]));
    assert!(found.iter().all(|restriction| restriction.disk.as_deref() == Some("vdb")), "{found:?}");
    restricted(&found)
}

pub(super) fn set(operations: &[Operation]) -> BTreeSet<Operation> {
    operations.iter().copied().collect()
}

#[test]
fn an_ordinary_vm_has_no_restriction() {
    let found = restrictions(&with_devices(vec![
        element("controller", &[("type", "usb"), ("model", "qemu-xhci"), ("index", "0")], vec![]),
        element("video", &[], vec![element("model", &[("type", "qxl"), ("heads", "1")], vec![])]),
        element("graphics", &[("type", "spice"), ("autoport", "yes")], vec![]),
        element("redirdev", &[("bus", "usb"), ("type", "spicevmc")], vec![]),
        element("rng", &[("model", "virtio")], vec![element("backend", &[("model", "random")], vec![])]),
    ]));
    assert_eq!(found, []);
}

#[test]
fn what_qemu_cannot_save_restricts_what_needs_it() {
    let memory = set(&Operation::MEMORY);
    let driver = |kind: &str| element("driver", &[("type", kind)], vec![]);
    assert_eq!(of_device(element("filesystem", &[("type", "mount")], vec![driver("virtiofs")])), memory);
    // By 9p, which a guest may mount at any time.
    assert_eq!(of_device(element("filesystem", &[("type", "mount")], vec![driver("path")])), memory);
    assert_eq!(of_device(element("filesystem", &[("type", "mount")], vec![])), memory);
    // What was saved before a guest mounted it is loaded; what a virtiofs device had is not.
    let of_snapshot = |source: &str, kind: &str| {
        let shared = element("filesystem", &[("type", source)], vec![driver(kind)]);
        restricted(&snapshot_restrictions(&with_devices(vec![shared]), Content::DisksAndMemory))
    };
    assert!(!of_snapshot("mount", "path").contains(&Operation::Revert));
    assert!(of_snapshot("mount", "virtiofs").contains(&Operation::Revert));
    assert!(of_snapshot("ram", "path").contains(&Operation::Revert));
    assert_eq!(of_device(element("shmem", &[("name", "s")], vec![])), memory);
    assert_eq!(of_device(element("interface", &[("type", "hostdev")], vec![])), memory);
    assert_eq!(of_device(element("hostdev", &[("type", "pci")], vec![])), memory);
    assert_eq!(
        of_device(element("hostdev", &[("type", "scsi")], vec![])),
        set(&Operation::CREATE_AND_REVERT).into_iter().chain(memory.clone()).collect()
    );
    assert_eq!(of_device(element("sound", &[("model", "virtio")], vec![])), memory);
    assert_eq!(of_device(element("channel", &[("type", "qemu-vdagent")], vec![])), memory);
    assert_eq!(
        of_device(element("tpm", &[("model", "tpm-crb")], vec![element("backend", &[("type", "emulator")], vec![])])),
        set(&[Operation::RevertInPlace])
    );
    let accelerated =
        element("model", &[("type", "virtio")], vec![element("acceleration", &[("accel3d", "yes")], vec![])]);
    assert_eq!(of_device(element("video", &[], vec![accelerated])), memory);
    // libvirt says from 12.5 on which of QEMU's devices it took.
    let virtio = |device| {
        let model = element("model", &[("type", "virtio"), ("primary", "yes"), ("device", device)], vec![]);
        of_device(element("video", &[], vec![model]))
    };
    assert_eq!(virtio("virtio-vga"), set(&[]));
    assert_eq!(virtio("virtio-gpu"), set(&[]));
    assert!(virtio("virtio-vga-gl").is_superset(&memory));
    assert!(virtio("vhost-user-vga").is_superset(&memory));
    let security = element("launchSecurity", &[("type", "sev")], vec![element("policy", &[], vec![])]);
    assert_eq!(restricted(&restrictions(&domain(vec![security]))), memory);
}

#[test]
fn a_disk_restricts_what_its_definition_breaks() {
    let all = set(&Operation::CREATE_AND_REVERT);
    let empty = |name: &str| vec![element(name, &[], vec![])];
    let and_deletion = all.iter().copied().chain([Operation::Delete]).collect();
    assert_eq!(of_disk(&[], empty("transient")), and_deletion, "the VM is on");
    assert_eq!(of_disk(&[], empty("shareable")), all);
    assert_eq!(of_disk(&[("snapshot", "no")], vec![]), all);
    assert_eq!(of_disk(&[("snapshot", "manual")], vec![]), all);
    assert_eq!(
        of_disk(&[("snapshot", "external")], vec![]),
        set(&[Operation::CreateOffline, Operation::CreateWithMemory, Operation::CreateLive])
    );
    assert_eq!(of_disk(&[("snapshot", "internal")], vec![]), set(&[]));
    assert_eq!(of_disk(&[("snapshot", "no")], empty("readonly")), set(&[]));
    assert_eq!(of_disk(&[("snapshot", "no"), ("device", "cdrom")], vec![]), set(&[]));
    assert_eq!(of_disk(&[], empty("encryption")), all);
    let source = element("source", &[("file", "/x")], empty("encryption"));
    assert_eq!(of_disk(&[], vec![element("backingStore", &[("type", "file")], vec![source])]), all);
    assert_eq!(of_disk(&[], vec![element("iotune", &[], empty("total_iops_sec"))]), set(&[]));
    for kind in ["network", "nvme", "vhostuser", "vhostvdpa", "dir"] {
        assert!(of_disk(&[("type", kind)], vec![]).is_superset(&set(&Operation::CREATE)), "{kind}");
    }
    assert!(of_disk(&[("type", "vhostfuture")], vec![]).is_superset(&all));
}

#[test]
fn a_snapshot_cannot_be_reverted_to_where_its_definition_breaks_that() {
    let shared = with_devices(vec![element("shmem", &[("name", "s")], vec![])]);
    assert_eq!(restricted(&snapshot_restrictions(&shared, Content::DisksAndMemory)), set(&Operation::REVERT));
    assert_eq!(snapshot_restrictions(&shared, Content::Disks), []);
    let encrypted = with_devices(vec![disk("vdb", vec![element("encryption", &[("format", "luks")], vec![])])]);
    for content in [Content::Disks, Content::DisksAndMemory] {
        let found = snapshot_restrictions(&encrypted, content);
        assert_eq!((restricted(&found), found[0].reason), (set(&Operation::REVERT), Reason::DiskEncrypted));
    }
    let excluded = with_devices(vec![element("disk", &[("type", "file"), ("snapshot", "no")], vec![])]);
    assert_eq!(
        snapshot_restrictions(&excluded, Content::Disks),
        [],
        "what a snapshot is to hold is decided before it is taken"
    );
}

#[test]
fn options_of_qemu_are_read_one_by_one() {
    let line = |values: &[&str]| {
        let args = values.iter().map(|value| element("qemu:arg", &[("value", value)], vec![])).collect();
        restricted(&restrictions(&domain(vec![element("qemu:commandline", &[], args)])))
    };
    assert_eq!(line(&["-cpu", "host,kvm=off", "-smbios", "type=1"]), set(&[]));
    assert_eq!(line(&["--device", "ivshmem-plain"]), set(&Operation::MEMORY));
    assert!(line(&["-drive", "file=/x"]).is_superset(&set(&Operation::CREATE_AND_REVERT)));
    assert!(line(&["-snapshot"]).is_superset(&set(&Operation::CREATE_AND_REVERT)));
    let env = |name| element("qemu:commandline", &[], vec![element("qemu:env", &[("name", name)], vec![])]);
    assert_eq!(restrictions(&domain(vec![env("QEMU_AUDIO_DRV")])), []);
    assert_eq!(restricted(&restrictions(&domain(vec![env("LD_PRELOAD")]))), set(&Operation::MEMORY));
}

#[test]
fn an_invariant_tsc_is_saved_where_its_frequency_is_fixed() {
    let invariant = element(
        "cpu",
        &[("mode", "custom")],
        vec![element("feature", &[("policy", "require"), ("name", "invtsc")], vec![])],
    );
    let timer = element("clock", &[], vec![element("timer", &[("name", "tsc"), ("frequency", "1")], vec![])]);
    assert_eq!(restricted(&restrictions(&domain(vec![invariant.clone()]))), set(&Operation::MEMORY));
    assert_eq!(restrictions(&domain(vec![invariant, timer])), []);
}

/// The elements around a path, each in the one before, and `inmost` in the last.
fn nest(path: &[&str], inmost: Element) -> Element {
    path.iter().rev().fold(inmost, |inner, name| element(name, &[], vec![inner]))
}

fn paths() -> impl Strategy<Value = Vec<&'static str>> {
    let mut paths: Vec<Vec<&'static str>> = TABLE.paths();
    paths.push(Vec::new());
    assert!(paths.len() > 700, "{}", paths.len());
    // What is a user's own may have any form.
    paths.retain(|path| path.first() != Some(&"metadata"));
    prop::sample::select(paths)
}

fn restricts_what_it_may_break(found: &[Restriction], path: &[&str], named: &str) -> Result<(), TestCaseError> {
    let least =
        if path.starts_with(&["devices", "disk"]) { &Operation::CREATE_AND_REVERT[..] } else { &Operation::MEMORY[..] };
    let naming: Vec<Restriction> = found.iter().filter(|one| one.message.contains(named)).cloned().collect();
    prop_assert!(restricted(&naming).is_superset(&set(least)), "{named}: {found:?}");
    prop_assert!(naming.iter().all(|one| one.reason == Reason::FeatureUnsupported));
    Ok(())
}

proptest! {
    /// Whatever libvirt invents, wherever: it restricts what it may break, by its path, on the VM and in a snapshot.
    #[test]
    fn an_unknown_element_is_restricted_by_its_path(path in paths(), name in "[a-z]{3,8}Future") {
        let domain = domain(vec![nest(&path, element(&name, &[], vec![]))]);
        let named = path.iter().copied().chain([name.as_str()]).collect::<Vec<_>>().join("/");
        restricts_what_it_may_break(&restrictions(&domain), &path, &named)?;
        let of_snapshot = snapshot_restrictions(&domain, Content::DisksAndMemory);
        prop_assert!(restricted(&of_snapshot).is_superset(&set(&Operation::REVERT)));
    }

    #[test]
    fn an_unknown_attribute_is_restricted_by_its_path(path in paths(), name in "[a-z]{3,8}Future") {
        let Some((last, outer)) = path.split_last() else { return Ok(()) };
        let odd = nest(outer, element(last, &[(&name, "x")], vec![]));
        let found = restrictions(&domain(vec![odd]));
        restricts_what_it_may_break(&found, &path, &format!("{}/@{name}", path.join("/")))?;
    }
}

#[test]
fn what_is_no_domain_of_a_known_type_restricts_everything() {
    let of_type = |kind| element("domain", &[("type", kind)], vec![]);
    for odd in [element("mysterious", &[], vec![]), of_type("hvf"), of_type("xen")] {
        let found = restrictions(&odd);
        assert_eq!(restricted(&found), set(&Operation::ALL), "{found:?}");
    }
    for name in ["domain", "inactiveDomain"] {
        assert_eq!(restrictions(&element(name, &[("type", "kvm")], vec![])), []);
    }
}

#[test]
fn the_tables_include_groups_that_there_are() {
    let table: &Table = &TABLE;
    assert_eq!(table.missing_groups(), Vec::<&str>::new());
}
