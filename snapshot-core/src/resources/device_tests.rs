//! What each kind of device needs, and what is in it that needs nothing.

use super::tests::{disk, element, of, text};
use super::*;

fn empty(name: &str, attributes: &[(&str, &str)]) -> Element {
    element(name, attributes, vec![])
}

/// A device with children.
fn device(name: &str, attributes: &[(&str, &str)], children: Vec<Element>) -> Vec<String> {
    of(vec![element(name, attributes, children)])
}

fn none() -> [String; 0] {
    []
}

#[test]
fn a_disk_needs_its_images_and_nothing_that_the_guest_is_told() {
    let with = |target, part: Element| {
        let mut disk = disk("file", "disk", target, empty("source", &[("file", "/images/b.qcow2")]));
        disk.children.push(part);
        of(vec![disk])
    };
    let own = ["file /images/b.qcow2"];
    for name in ["mirror", "driver", "serial", "wwn", "vendor", "product", "iotune", "geometry"] {
        assert_eq!(with("vdb", text(name, "/not/a/path")), own, "{name}");
    }
    assert_eq!(with("vdb", text("newpart", "/srv/x")), ["file /images/b.qcow2", "file /srv/x"]);
    // Of a disk that is looked at elsewhere the chain is as well.
    let store = |kind, source| element("backingStore", &[("type", kind)], vec![source]);
    assert_eq!(with("vda", store("file", empty("source", &[("file", "/images/base.qcow2")]))), none());
    let mut deep = store("block", empty("source", &[("dev", "/dev/vg/mid")]));
    deep.children.push(store("dir", empty("source", &[("dir", "/images/base")])));
    assert_eq!(with("vdb", deep), ["file /dev/vg/mid", "file /images/b.qcow2", "file /images/base"]);
}

#[test]
fn a_disk_of_another_kind_needs_what_its_source_names() {
    let source = |children| element("source", &[("name", "/pool/x")], children);
    let of_kind = |kind, source| of(vec![disk(kind, "disk", "vdb", source)]);
    let host = empty("host", &[("transport", "unix"), ("socket", "/run/nbd.sock")]);
    assert_eq!(of_kind("network", source(vec![host])), ["file /run/nbd.sock"]);
    let secret = empty("secret", &[("uuid", "6a9d"), ("path", "/x")]);
    let encryption = element("encryption", &[], vec![secret, empty("secret", &[])]);
    assert_eq!(of_kind("network", source(vec![encryption.clone()])), ["secret 6a9d"]);
    let address = empty("address", &[("domain", "0"), ("bus", "16"), ("slot", "0x1f"), ("function", "7")]);
    assert_eq!(of_kind("nvme", element("source", &[], vec![address])), ["PCI device 0000:10:1f.7"]);
    let socket = empty("source", &[("type", "unix"), ("path", "/run/vhost.sock")]);
    assert_eq!(of_kind("vhostuser", socket), ["file /run/vhost.sock"]);
    assert_eq!(of_kind("vhostvdpa", empty("source", &[("dev", "/dev/vhost-vdpa-1")])), ["file /dev/vhost-vdpa-1"]);
    let optional = element("source", &[("file", "/x"), ("startupPolicy", "requisite")], vec![encryption]);
    assert_eq!(of_kind("file", optional), ["secret 6a9d"], "its secret is asked for, if it is there");
    let mandatory = empty("source", &[("file", "/x"), ("startupPolicy", "mandatory")]);
    assert_eq!(of_kind("file", mandatory), ["file /x"]);
    let reserved = |managed| {
        let helper = empty("source", &[("type", "unix"), ("path", "/run/pr.sock"), ("mode", "client")]);
        element("source", &[("dev", "/dev/sdb")], vec![element("reservations", &[("managed", managed)], vec![helper])])
    };
    assert_eq!(of_kind("block", reserved("no")), ["file /dev/sdb", "file /run/pr.sock"]);
    assert_eq!(of_kind("block", reserved("yes")), ["file /dev/sdb"]);
    // The name of a medium that is no file is not looked for.
    assert_eq!(of(vec![disk("file", "cdrom", "sda", empty("source", &[("file", "")]))]), none());
    assert_eq!(of(vec![disk("file", "floppy", "fda", empty("source", &[("file", "/f")]))]), ["medium /f in drive fda"]);
}

#[test]
fn an_interface_needs_the_host_s_end() {
    let of_kind = |kind, children| device("interface", &[("type", kind)], children);
    let source = |attributes: &[(&str, &str)]| vec![empty("source", attributes)];
    let tap = |managed| vec![empty("target", &[("dev", "tap0"), ("managed", managed)])];
    assert_eq!(of_kind("ethernet", tap("no")), ["network interface tap0"]);
    assert_eq!(of_kind("ethernet", tap("yes")), none());
    let address = empty("address", &[("bus", "0x03")]);
    assert_eq!(of_kind("hostdev", vec![element("source", &[], vec![address])]), ["PCI device 0000:03:00.0"]);
    // QEMU makes the socket where it is the server.
    let socket = |mode| source(&[("type", "unix"), ("path", "/run/v/s.sock"), ("mode", mode)]);
    assert_eq!(of_kind("vhostuser", socket("client")), ["file /run/v/s.sock"]);
    assert_eq!(of_kind("vhostuser", socket("server")), ["file /run/v"]);
    for kind in ["user", "server", "client", "mcast", "udp", "internal", "null", "vds"] {
        assert_eq!(of_kind(kind, source(&[("address", "127.0.0.1")])), none(), "{kind}");
    }
    let backend = empty("backend", &[("type", "passt"), ("logFile", "/log/p.log"), ("tap", "/dev/net/tun")]);
    assert_eq!(
        of_kind("user", vec![backend, text("newpart", "/srv/x")]),
        ["file /dev/net/tun", "file /log", "file /srv/x"]
    );
}

#[test]
fn a_host_device_needs_what_is_passed_through() {
    let of_kind = |mode, kind, source: Element| {
        let rom = empty("rom", &[("file", "/rom/x.rom")]);
        device("hostdev", &[("mode", mode), ("type", kind)], vec![source, rom])
    };
    let rom = "file /rom/x.rom";
    let subsystem = |kind, attributes: &[(&str, &str)], children| {
        of_kind("subsystem", kind, element("source", attributes, children))
    };
    assert_eq!(subsystem("mdev", &[], vec![empty("address", &[("uuid", "c2-7")])]), [rom, "mediated device c2-7"]);
    let by_address = vec![empty("address", &[("bus", "1"), ("device", "0x0c")])];
    assert_eq!(subsystem("usb", &[], by_address), ["file /dev/bus/usb/001/012", rom]);
    assert_eq!(
        subsystem("usb", &[], vec![]),
        [rom, "a USB device without an id or an address, which is not understood"]
    );
    let adapter = vec![empty("adapter", &[("name", "scsi_host0")])];
    assert_eq!(subsystem("scsi", &[], adapter), [rom, "SCSI adapter scsi_host0"]);
    let secret = empty("secret", &[("type", "iscsi"), ("usage", "disks")]);
    let auth = vec![element("auth", &[], vec![secret])];
    assert_eq!(subsystem("scsi", &[("protocol", "iscsi"), ("name", "iqn")], auth), [rom, "iscsi secret disks"]);
    assert_eq!(subsystem("pci", &[("startupPolicy", "optional")], vec![]), none(), "it may be absent");
    let block = element("source", &[], vec![text("block", "/dev/sdz")]);
    assert_eq!(of_kind("capabilities", "storage", block), ["file /dev/sdz", rom]);
    assert_eq!(device("hostdev", &[("mode", "subsystem"), ("type", "pci")], vec![]), none());
}

#[test]
fn other_devices_need_what_the_host_has_of_them() {
    let socket = |mode| vec![empty("source", &[("mode", mode), ("path", "/run/d/s.sock")])];
    let card = |mode, mut children: Vec<Element>| {
        children.push(text("database", "/etc/pki/nssdb"));
        device("smartcard", &[("mode", mode), ("type", "unix")], children)
    };
    assert_eq!(card("passthrough", socket("bind")), ["file /etc/pki/nssdb", "file /run/d"]);
    assert_eq!(card("host-certificates", vec![]), ["file /etc/pki/nssdb"]);
    assert_eq!(device("smartcard", &[("mode", "host"), ("type", "new")], vec![]), none());
    assert_eq!(device("audio", &[("type", "file"), ("path", "/log/a.wav")], vec![]), ["file /log"]);
    assert_eq!(device("audio", &[("type", "oss"), ("path", "/dev/dsp")], vec![]), ["file /dev/dsp"]);
    let rng = |attributes: &[(&str, &str)], children| {
        device("rng", &[("model", "virtio")], vec![element("backend", attributes, children)])
    };
    let entropy = Element { text: "/dev/hwrng".to_owned(), ..empty("backend", &[("model", "random")]) };
    assert_eq!(device("rng", &[], vec![entropy]), ["file /dev/hwrng"]);
    assert_eq!(rng(&[("model", "egd"), ("type", "unix")], socket("connect")), ["file /run/d/s.sock"]);
    assert_eq!(rng(&[("model", "egd"), ("type", "unix")], socket("bind")), ["file /run/d"]);
    let unknown = "a random number generator of model new, which is not understood";
    assert_eq!(rng(&[("model", "new")], vec![]), [unknown]);
    assert_eq!(device("rng", &[], vec![text("rate", "/x")]), none());
    let volume = vec![empty("source", &[("pool", "images"), ("volume", "v")]), empty("target", &[("dir", "/mnt")])];
    assert_eq!(device("filesystem", &[("type", "volume")], volume), ["volume v of active storage pool images"]);
    let shared = vec![empty("source", &[("dir", "/srv/share")]), empty("target", &[("dir", "/mnt")])];
    assert_eq!(device("filesystem", &[("type", "mount")], shared), ["file /srv/share"]);
    assert_eq!(device("filesystem", &[("type", "ram")], vec![text("source", "/x")]), none());
    let listen = empty("listen", &[("type", "socket"), ("socket", "/run/d/vnc.sock")]);
    let gl = empty("gl", &[("rendernode", "/dev/dri/renderD128")]);
    let graphics = device("graphics", &[("socket", "/run/e/vnc.sock")], vec![listen, gl]);
    assert_eq!(graphics, ["file /dev/dri/renderD128", "file /run/d", "file /run/e"]);
}

#[test]
fn a_tpm_needs_its_emulator_its_secret_and_its_directory() {
    let of_kind = |kind, children| device("tpm", &[], vec![element("backend", &[("type", kind)], children)]);
    let encryption = empty("encryption", &[("secret", "6a9d")]);
    let source = empty("source", &[("type", "dir"), ("path", "/tpm/desk")]);
    assert_eq!(of_kind("emulator", vec![encryption, source]), ["file /tpm", "secret 6a9d", "TPM emulator swtpm"]);
    let node = || vec![element("device", &[("path", "/dev/tpm0")], vec![])];
    assert_eq!(of_kind("passthrough", node()), ["file /dev/tpm0"]);
    assert_eq!(of_kind("external", node()), ["file /dev/tpm0"]);
    assert_eq!(of_kind("new", node()), ["a TPM of type new, which is not understood"]);
    assert_eq!(device("tpm", &[], vec![text("model", "/x")]), none());
}

#[test]
fn a_setting_of_the_domain_needs_its_paths_where_it_has_any() {
    let of_setting = |name| {
        let domain = element("domain", &[], vec![text(name, "/srv/x")]);
        needed(&domain, &BTreeSet::new()).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for name in ["name", "title", "description", "metadata", "cpu", "features", "resource", "seclabel"] {
        assert_eq!(of_setting(name), none(), "{name}");
    }
    assert_eq!(of_setting("newsetting"), ["file /srv/x"]);
}

#[test]
fn the_directory_of_a_run_is_made_by_libvirt_and_no_other() {
    let of_socket = |path| device("graphics", &[("socket", path)], vec![]);
    assert_eq!(of_socket("/run/qemu/domain-12-desk/vnc.sock"), none());
    assert_eq!(of_socket("/run/qemu/domain--1-desk/vnc.sock"), none());
    assert_eq!(of_socket("/run/domain-names/vnc.sock"), ["file /run/domain-names"]);
    assert_eq!(of_socket("/vnc.sock"), ["file /"]);
}
