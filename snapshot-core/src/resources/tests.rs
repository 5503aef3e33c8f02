//! What definitions need. The elements are made by hand here; the agent's tests read libvirt's XML.

use super::*;

pub(super) fn element(name: &str, attributes: &[(&str, &str)], children: Vec<Element>) -> Element {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Element { name: name.to_owned(), attributes, text: String::new(), children }
}

pub(super) fn text(name: &str, text: &str) -> Element {
    Element { text: text.to_owned(), ..element(name, &[], vec![]) }
}

pub(super) fn of(devices: Vec<Element>) -> Vec<String> {
    let domain = element("domain", &[("type", "kvm")], vec![element("devices", &[], devices)]);
    needed(&domain, &BTreeSet::from(["vda".to_owned()])).iter().map(ToString::to_string).collect()
}

pub(super) fn disk(kind: &str, device: &str, target: &str, source: Element) -> Element {
    let target = element("target", &[("dev", target)], vec![]);
    element("disk", &[("type", kind), ("device", device)], vec![source, target])
}

#[test]
fn disks_and_media() {
    let file = |attributes: &[(&str, &str)]| element("source", attributes, vec![]);
    let iso = disk("file", "cdrom", "sda", file(&[("file", "/iso/x.iso")]));
    assert_eq!(of(vec![iso]), ["medium /iso/x.iso in drive sda"]);
    let optional = disk("file", "cdrom", "sda", file(&[("file", "/iso/x.iso"), ("startupPolicy", "optional")]));
    assert!(of(vec![optional]).is_empty());
    assert!(of(vec![disk("file", "disk", "vda", file(&[("file", "/images/a.qcow2")]))]).is_empty(), "it is left out");
    assert_eq!(of(vec![disk("file", "disk", "vdb", file(&[("file", "/images/b.raw")]))]), ["file /images/b.raw"]);
    assert_eq!(of(vec![disk("block", "lun", "sdb", file(&[("dev", "/dev/vg/lv")]))]), ["file /dev/vg/lv"]);
    let volume = file(&[("pool", "images"), ("volume", "x.iso")]);
    assert_eq!(of(vec![disk("volume", "cdrom", "sda", volume)]), ["volume x.iso of active storage pool images"]);
    let secret = element("secret", &[("type", "ceph"), ("usage", "desk")], vec![]);
    let network = element("source", &[("name", "/pool/x")], vec![element("auth", &[], vec![secret])]);
    assert_eq!(of(vec![disk("network", "disk", "vdb", network)]), ["ceph secret desk"]);
    assert_eq!(
        of(vec![disk("newkind", "disk", "vdb", file(&[]))]),
        ["a disk of type newkind, which is not understood"]
    );
    let below = element("backingStore", &[("type", "file")], vec![file(&[("file", "/images/base.qcow2")])]);
    let mut based = disk("file", "disk", "vdb", file(&[("file", "/images/b.qcow2")]));
    based.children.push(below);
    assert_eq!(of(vec![based]), ["file /images/b.qcow2", "file /images/base.qcow2"]);
}

#[test]
fn networks_and_host_devices() {
    let interface = |kind: &str, source: &[(&str, &str)]| {
        element("interface", &[("type", kind)], vec![element("source", source, vec![])])
    };
    // Of a VM that runs libvirt writes down the bridge of a network, too.
    assert_eq!(of(vec![interface("network", &[("network", "lab"), ("bridge", "virbr1")])]), ["active network lab"]);
    assert_eq!(of(vec![interface("bridge", &[("bridge", "br0")])]), ["network interface br0"]);
    assert_eq!(of(vec![interface("direct", &[("dev", "eth0"), ("mode", "vepa")])]), ["network interface eth0"]);
    assert_eq!(of(vec![interface("vdpa", &[("dev", "/dev/vhost-vdpa-0")])]), ["file /dev/vhost-vdpa-0"]);
    assert!(of(vec![interface("user", &[])]).is_empty());
    assert_eq!(of(vec![interface("newkind", &[])]), ["an interface of type newkind, which is not understood"]);
    let mut filtered = interface("user", &[]);
    filtered.children.push(element("filterref", &[("filter", "clean-traffic")], vec![]));
    assert_eq!(of(vec![filtered]), ["network filter clean-traffic"]);
    let address = [("domain", "0x0000"), ("bus", "0x3"), ("slot", "0x00"), ("function", "0x1")];
    let host = |kind: &str, children| {
        element("hostdev", &[("mode", "subsystem"), ("type", kind)], vec![element("source", &[], children)])
    };
    assert_eq!(of(vec![host("pci", vec![element("address", &address, vec![])])]), ["PCI device 0000:03:00.1"]);
    let ids = vec![element("vendor", &[("id", "0x46d")], vec![]), element("product", &[("id", "0xc52b")], vec![])];
    assert_eq!(of(vec![host("usb", ids)]), ["USB device 0x046d:0xc52b"]);
    assert_eq!(of(vec![host("newkind", vec![])]).len(), 1, "what is not known does not exist");
}

#[test]
fn paths_that_have_to_exist_and_those_that_are_made() {
    let source = |attributes: &[(&str, &str)]| element("source", attributes, vec![]);
    let serial =
        |kind: &str, attributes: &[(&str, &str)]| element("serial", &[("type", kind)], vec![source(attributes)]);
    assert!(of(vec![serial("pty", &[("path", "/dev/pts/3")])]).is_empty());
    assert_eq!(of(vec![serial("dev", &[("path", "/dev/ttyS0")])]), ["file /dev/ttyS0"]);
    assert_eq!(of(vec![serial("file", &[("path", "/logs/serial.log")])]), ["file /logs"]);
    assert_eq!(of(vec![serial("unix", &[("mode", "bind"), ("path", "/run/x/serial")])]), ["file /run/x"]);
    assert_eq!(of(vec![serial("unix", &[("mode", "connect"), ("path", "/run/x/serial")])]), ["file /run/x/serial"]);
    let of_a_run = [("mode", "bind"), ("path", "/run/libvirt/qemu/channel/1-desk/domain-1-desk/agent")];
    assert!(of(vec![serial("unix", &of_a_run)]).is_empty());
    assert_eq!(of(vec![serial("newkind", &[])]), ["serial of type newkind, which is not understood"]);
    let shared = vec![source(&[("dir", "/srv/home")]), element("target", &[("dir", "/home")], vec![])];
    assert_eq!(of(vec![element("filesystem", &[("type", "mount")], shared)]), ["file /srv/home"]);
    assert_eq!(of(vec![text("emulator", "/usr/bin/qemu")]), ["file /usr/bin/qemu"]);
    let vnc = element("graphics", &[("type", "vnc"), ("passwd", "/secret")], vec![]);
    assert!(of(vec![vnc]).is_empty());
    // Whatever a device is called that there is none of today: a path in it has to exist.
    let new = element("newdevice", &[], vec![element("part", &[("where", "/srv/x")], vec![text("other", "/srv/y")])]);
    assert_eq!(of(vec![new]), ["file /srv/x", "file /srv/y"]);
}

#[test]
fn the_firmware_the_kernel_and_the_machine_type() {
    let mut nvram = text("nvram", "/nvram/desk.fd");
    nvram.attributes.insert("template".to_owned(), "/usr/share/vars.fd".to_owned());
    let kind = Element {
        text: "hvm".to_owned(),
        ..element("type", &[("arch", "x86_64"), ("machine", "pc-q35-10.0")], vec![])
    };
    let os = vec![kind, text("loader", "/usr/share/code.fd"), nvram, text("kernel", "/boot/k"), text("cmdline", "/x")];
    let devices = element("devices", &[], vec![text("emulator", "/usr/bin/qemu")]);
    let resource = element("resource", &[], vec![text("partition", "/machine")]);
    let metadata = element("metadata", &[], vec![text("path", "/not/a/path")]);
    let domain = element("domain", &[("type", "kvm")], vec![element("os", &[], os), devices, resource, metadata]);
    let found: Vec<_> = needed(&domain, &BTreeSet::new()).iter().map(ToString::to_string).collect();
    let expected = [
        "file /boot/k",
        "file /nvram",
        "file /usr/bin/qemu",
        "file /usr/share/code.fd",
        "file /usr/share/vars.fd",
        "machine type pc-q35-10.0 of /usr/bin/qemu",
    ];
    assert_eq!(found, expected);
}

#[test]
fn uefi_variables_in_another_format_than_their_template() {
    for (format, template, conversion) in [
        (Some("qcow2"), Some("raw"), Some(("raw", "qcow2"))),
        (Some("qcow2"), None, Some(("raw", "qcow2"))),
        (Some("raw"), Some("qcow2"), Some(("qcow2", "raw"))),
        (None, Some("qcow2"), Some(("qcow2", "raw"))),
        (Some("qcow2"), Some("qcow2"), None),
        (Some("raw"), Some("raw"), None),
        (None, None, None),
    ] {
        let mut nvram = text("nvram", "/nvram/desk.fd");
        let attributes = [("format", format), ("templateFormat", template), ("template", Some("/usr/share/vars.fd"))];
        let attributes = attributes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        nvram.attributes.extend(attributes);
        let domain = |nvram| element("domain", &[], vec![element("os", &[], vec![nvram])]);
        let found = |nvram| needed(&domain(nvram), &BTreeSet::new());
        let conversions = |nvram| found(nvram).into_iter().find(|one| matches!(one, Resource::NvramConversion { .. }));
        let expected =
            conversion.map(|(from, to)| Resource::NvramConversion { from: from.to_owned(), to: to.to_owned() });
        assert_eq!(conversions(nvram.clone()), expected, "{format:?} {template:?}");
        // What has no template was not made from one.
        nvram.attributes.remove("template");
        assert_eq!(conversions(nvram), None, "{format:?} {template:?}");
    }
}
