//! Elements that are understood, and that make operations unavailable.
//!
//! What QEMU cannot save was measured with QEMU 10.0.2 (`savevm` with each device; `query-migrate` names it in `blocked-reasons`), or
//! is what its source and libvirt's documentation say.

use super::{Finding, Revert, disk_rules};
use crate::error::Reason;
use crate::hardware::Element;
use crate::restriction::RestrictedOperation;

const MEMORY: &[RestrictedOperation] = &RestrictedOperation::MEMORY;
const IN_PLACE: &[RestrictedOperation] = &[RestrictedOperation::RevertInPlace];
const CREATE_AND_REVERT: &[RestrictedOperation] = &RestrictedOperation::CREATE_AND_REVERT;
const REVERT_AND_MEMORY: &[RestrictedOperation] = &[
    RestrictedOperation::CreateWithMemory,
    RestrictedOperation::CreateExternalMemory,
    RestrictedOperation::Revert,
    RestrictedOperation::RevertInPlace,
];

/// An element at a path that restricts operations.
struct Rule {
    path: &'static str,
    when: When,
    operations: &'static [RestrictedOperation],
    revert: Revert,
    /// What the element is, and why that stands in the way.
    message: &'static str,
}

/// Which elements at the path of a rule it is about.
enum When {
    Always,
    /// Those with one of these values of an attribute.
    Is(&'static str, &'static [&'static str]),
    If(fn(&Element) -> bool),
}

/// A rule about what QEMU can neither save nor load.
const fn unsaved(path: &'static str, when: When, message: &'static str) -> Rule {
    Rule { path, when, operations: MEMORY, revert: Revert::WithMemory, message }
}

/// A rule about what has state that QEMU does not load: a revert has to start another process.
const fn reset(path: &'static str, when: When, message: &'static str) -> Rule {
    Rule { path, when, operations: IN_PLACE, revert: Revert::Never, message }
}

/// A rule about what holds data that no snapshot has, or changes how snapshots are done.
const fn outside(path: &'static str, when: When, message: &'static str) -> Rule {
    Rule { path, when, operations: CREATE_AND_REVERT, revert: Revert::Always, message }
}

use When::{Always, If, Is};

const RULES: &[Rule] = &[
    unsaved(
        "",
        If(has_unsaved_cpu),
        "the CPU has an invariant TSC (invtsc, or migratable='off'), which QEMU cannot save",
    ),
    unsaved(
        "launchSecurity",
        Always,
        "the memory of the VM is encrypted by the CPU (<launchSecurity>), so it cannot be saved",
    ),
    unsaved(
        "features/hyperv",
        Is("mode", &["passthrough"]),
        "QEMU cannot save the features of <hyperv mode='passthrough'>",
    ),
    unsaved(
        "os/loader",
        Is("readonly", &["no"]),
        "the UEFI firmware is writable (<loader readonly='no'>), which QEMU cannot save",
    ),
    unsaved("os/varstore", Always, "the UEFI variables are in a <varstore>, which snapshots do not hold"),
    reset("os/nvram", Always, "the VM has UEFI variables (os/nvram), which QEMU does not load"),
    reset("genid", Always, "the VM has a generation ID (genid), which has to change with a revert"),
    outside(
        "qemu:commandline",
        If(has_unknown_options),
        "QEMU is given options of <qemu:commandline> that may add disks or change them",
    ),
    unsaved(
        "qemu:commandline",
        If(has_device_options),
        "QEMU is given options or variables of <qemu:commandline> that may add devices",
    ),
    outside("qemu:capabilities", Always, "libvirt is told to use QEMU otherwise than it does (<qemu:capabilities>)"),
    unsaved("qemu:override", Always, "properties of devices are overridden (<qemu:override>)"),
    outside(
        "devices/memory",
        Is("model", &["nvdimm", "virtio-pmem"]),
        "the VM has persistent memory (<memory model='nvdimm'> or virtio-pmem), which snapshots of disks do not hold",
    ),
    unsaved(
        "devices/memory",
        Is("model", &["sgx-epc"]),
        "QEMU cannot save the memory of an SGX enclave (<memory model='sgx-epc'>)",
    ),
    unsaved("devices/controller", Is("type", &["nvme"]), "QEMU cannot save an NVMe controller"),
    unsaved(
        "devices/filesystem",
        If(is_unsaved_filesystem),
        "QEMU cannot save a virtiofs or MTP file system that is shared with the host",
    ),
    Rule {
        path: "devices/filesystem",
        when: If(|filesystem| !is_unsaved_filesystem(filesystem)),
        operations: MEMORY,
        // What was saved before the guest mounted it can be loaded.
        revert: Revert::Never,
        message: "a directory is shared with the host by 9p, which QEMU cannot save while the guest has it mounted",
    },
    reset(
        "devices/filesystem",
        Always,
        "the VM shares a file system with the host (devices/filesystem), which has state that QEMU does not load",
    ),
    unsaved(
        "devices/interface",
        Is("type", &["hostdev"]),
        "a network card of the host is passed through (<interface type='hostdev'>), which QEMU cannot save",
    ),
    unsaved(
        "devices/interface",
        Is("type", &["vdpa", "vhostuser"]),
        "a network card is in another process or device (<interface type='vhostuser'> or vdpa), whose state QEMU does not save",
    ),
    unsaved(
        "devices/interface/teaming",
        Always,
        "a network card is teamed with one that is passed through (<teaming>)",
    ),
    unsaved("devices/interface/model", Is("type", &["usb-net"]), "QEMU cannot save a USB network card"),
    unsaved(
        "devices/input",
        Is("type", &["passthrough"]),
        "an input device of the host is passed through, which QEMU cannot save",
    ),
    unsaved(
        "devices/sound",
        Is("model", &["usb", "virtio"]),
        "QEMU cannot save a USB or virtio sound device; the model ich9 can be saved",
    ),
    outside(
        "devices/hostdev",
        If(is_passed_disk),
        "a SCSI device of the host is passed through (<hostdev type='scsi'>), whose data snapshots do not hold",
    ),
    unsaved("devices/hostdev", Always, "a device of the host is passed through (<hostdev>), which QEMU cannot save"),
    unsaved(
        "devices/video/driver",
        Is("name", &["vhostuser"]),
        "the graphics card is in another process (vhost-user), which QEMU cannot save",
    ),
    unsaved("devices/video/model", Is("blob", &["on"]), "QEMU cannot save a graphics card with blob resources"),
    unsaved(
        "devices/video/model/acceleration",
        Is("accel3d", &["yes"]),
        "the graphics card has 3D acceleration (VirGL), which QEMU cannot save",
    ),
    unsaved(
        "devices/channel",
        Is("type", &["qemu-vdagent"]),
        "the clipboard is shared by QEMU itself (<channel type='qemu-vdagent'>), which QEMU cannot save; a spicevmc channel can be saved",
    ),
    unsaved("devices/serial/target", Is("type", &["usb-serial"]), "QEMU cannot save a USB serial port"),
    unsaved(
        "devices/smartcard",
        Is("mode", &["host", "host-certificates"]),
        "a smart card of the host is passed through, which QEMU cannot save",
    ),
    reset(
        "devices/redirdev",
        If(|device| !is(device, "type", &["spicevmc"])),
        "a USB device is redirected over a connection of QEMU's own (devices/redirdev), which a load does not bring back",
    ),
    unsaved(
        "devices/tpm/backend",
        Is("type", &["passthrough"]),
        "the TPM of the host is passed through, which QEMU cannot save",
    ),
    Rule {
        path: "devices/tpm/backend",
        when: Is("type", &["external"]),
        operations: REVERT_AND_MEMORY,
        revert: Revert::Always,
        message: "the TPM is a process that libvirt does not start (<backend type='external'>): it ends with QEMU, and a revert could not start the VM again",
    },
    reset("devices/tpm", Always, "the VM has a TPM (devices/tpm), which has state that QEMU does not load"),
    reset(
        "devices/vsock",
        Always,
        "the VM has a vsock device (devices/vsock), which has state that QEMU does not load",
    ),
    unsaved("devices/shmem", Always, "the VM shares memory with another process (<shmem>), which QEMU cannot save"),
    unsaved("devices/crypto", Always, "QEMU cannot save a virtio crypto device"),
    unsaved("devices/pstore", Always, "the VM has a <pstore>, whose file snapshots do not hold"),
    unsaved("devices/iommu", Is("model", &["amd"]), "QEMU cannot save an AMD IOMMU"),
];

/// What the rules find in a definition.
pub(super) fn find(domain: &Element, findings: &mut Vec<Finding>) {
    for rule in RULES {
        let mut matching = at(domain, rule.path).into_iter().filter(|element| match rule.when {
            Always => true,
            Is(name, values) => is(element, name, values),
            If(condition) => condition(element),
        });
        if matching.next().is_some() {
            let (operations, revert) = (rule.operations, rule.revert);
            let message = format!("{}: {}", rule.message, remedy(operations));
            findings.push(Finding { operations, revert, reason: Reason::FeatureUnsupported, message, disk: None });
        }
    }
    for disk in at(domain, "devices/disk") {
        // libvirt tells the number of the run of a VM that is on.
        disk_rules::find(disk, domain.attributes.contains_key("id"), findings);
    }
}

fn remedy(operations: &[RestrictedOperation]) -> &'static str {
    if operations == IN_PLACE {
        "reverts restart the QEMU process"
    } else if operations == MEMORY {
        "take a snapshot of the disks alone, switch the VM off first, or remove the device"
    } else {
        "remove it from the definition first"
    }
}

/// The elements at a path below this one.
pub(super) fn at<'a>(element: &'a Element, path: &str) -> Vec<&'a Element> {
    if path.is_empty() {
        return vec![element];
    }
    let (name, rest) = path.split_once('/').unwrap_or((path, ""));
    element.children.iter().filter(|child| child.name == name).flat_map(|child| at(child, rest)).collect()
}

/// Whether an attribute has one of these values.
pub(super) fn is(element: &Element, name: &str, values: &[&str]) -> bool {
    element.attributes.get(name).is_some_and(|value| values.contains(&value.as_str()))
}

/// QEMU blocks saving a CPU with an invariant TSC under KVM, unless its frequency is fixed.
fn has_unsaved_cpu(domain: &Element) -> bool {
    let required = |feature: &&Element| {
        is(feature, "name", &["invtsc"]) && !is(feature, "policy", &["disable", "forbid", "optional"])
    };
    let is_invariant = at(domain, "cpu/feature").iter().any(required)
        || at(domain, "cpu").iter().any(|cpu| is(cpu, "migratable", &["off"]));
    let has_fixed_frequency = at(domain, "clock/timer")
        .iter()
        .any(|timer| is(timer, "name", &["tsc"]) && timer.attributes.contains_key("frequency"));
    is(domain, "type", &["kvm"]) && is_invariant && !has_fixed_frequency
}

fn is_unsaved_filesystem(filesystem: &Element) -> bool {
    !is(filesystem, "type", &["mount"])
        || at(filesystem, "driver").iter().any(|driver| is(driver, "type", &["virtiofs", "mtp"]))
}

fn is_passed_disk(device: &Element) -> bool {
    is(device, "type", &["scsi", "scsi_host", "storage"])
}

/// Options of QEMU that change nothing that a snapshot holds.
const PLAIN_OPTIONS: [&str; 8] = ["-cpu", "-smbios", "-fw_cfg", "-rtc", "-name", "-msg", "-audiodev", "-audio"];

/// Options of QEMU that add devices, or the host's ends of them, and no disks.
const DEVICE_OPTIONS: [&str; 18] = [
    "-device",
    "-netdev",
    "-net",
    "-nic",
    "-chardev",
    "-object",
    "-machine",
    "-M",
    "-usb",
    "-vga",
    "-display",
    "-spice",
    "-vnc",
    "-serial",
    "-parallel",
    "-monitor",
    "-fsdev",
    "-acpitable",
];

/// Variables of QEMU's environment that change sound and display alone.
const PLAIN_VARIABLES: [&str; 6] = ["QEMU_AUDIO_", "QEMU_PA_", "PULSE_", "PIPEWIRE_", "SDL_", "SPICE_"];

/// The options, each without its value. Those of two dashes mean the same.
fn options(commandline: &Element) -> impl Iterator<Item = String> {
    let values = commandline
        .children
        .iter()
        .filter(|child| child.name == "qemu:arg")
        .filter_map(|arg| arg.attributes.get("value"));
    values
        .filter(|value| value.starts_with('-'))
        .map(|value| value.strip_prefix('-').filter(|rest| rest.starts_with('-')).unwrap_or(value).to_owned())
}

fn has_unknown_options(commandline: &Element) -> bool {
    options(commandline)
        .any(|option| !PLAIN_OPTIONS.contains(&option.as_str()) && !DEVICE_OPTIONS.contains(&option.as_str()))
}

fn has_device_options(commandline: &Element) -> bool {
    let variables = commandline
        .children
        .iter()
        .filter(|child| child.name == "qemu:env")
        .filter_map(|env| env.attributes.get("name"));
    let is_plain = |name: &String| PLAIN_VARIABLES.iter().any(|prefix| name.starts_with(prefix));
    options(commandline).any(|option| DEVICE_OPTIONS.contains(&option.as_str()))
        || variables.into_iter().any(|name| !is_plain(name))
}
