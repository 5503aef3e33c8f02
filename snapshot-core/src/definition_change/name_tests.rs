//! Names, values and pairs: what a change is called, and which two elements are the same one.

use super::tests::{card, disk, domain, element, memory, text, told};
use super::*;

fn empty(name: &str, attributes: &[(&str, &str)]) -> Element {
    element(name, attributes, vec![])
}

/// The changes between two settings of the domain.
fn of_setting(now: Element, then: Element) -> Vec<String> {
    told(domain(vec![now], vec![]), domain(vec![then], vec![]))
}

/// The changes between two devices.
fn of_device(now: Element, then: Element) -> Vec<String> {
    told(domain(vec![], vec![now]), domain(vec![], vec![then]))
}

#[test]
fn settings_are_called_what_people_call_them() {
    let os = |machine| element("os", &[], vec![empty("type", &[("machine", machine)])]);
    assert_eq!(of_setting(os("pc-9"), os("pc-10")), ["machine type: pc-9 → pc-10"]);
    assert_eq!(of_setting(memory("memory", "1024"), memory("memory", "2048")), ["memory: 1 MiB → 2 MiB"]);
    assert_eq!(of_setting(memory("maxMemory", "3"), memory("maxMemory", "4")), ["maximum memory: 3 KiB → 4 KiB"]);
    let cpus = |current| empty("vcpu", &[("current", current)]);
    assert_eq!(of_setting(cpus("1"), cpus("2")), ["vCPUs at the start: 1 → 2"]);
    let card = |children| element("interface", &[], [vec![empty("mac", &[("address", "m")])], children].concat());
    let bridge = |name| card(vec![empty("source", &[("bridge", name)])]);
    assert_eq!(of_device(bridge("a"), bridge("b")), ["network card m: bridge: a → b"]);
    let model = |kind| card(vec![empty("model", &[("type", kind)])]);
    assert_eq!(of_device(model("e1000"), model("virtio")), ["network card m: model: e1000 → virtio"]);
    let block = |dev| element("disk", &[], vec![empty("target", &[("dev", "vda")]), empty("source", &[("dev", dev)])]);
    assert_eq!(of_device(block("/dev/a"), block("/dev/b")), ["disk vda: block device: /dev/a → /dev/b"]);
    // Only the order of <boot> of a device is that in which it boots.
    let ordered = |inner, order| element("unheard", &[], vec![empty(inner, &[("order", order)])]);
    assert_eq!(of_device(ordered("boot", "1"), ordered("boot", "2")), ["unheard: boot order: 1 → 2"]);
    assert_eq!(of_device(ordered("part", "1"), ordered("part", "2")), ["unheard: part/order: 1 → 2"]);
    assert_eq!(of_setting(ordered("boot", "1"), ordered("boot", "2")), ["unheard/boot/order: 1 → 2"]);
}

#[test]
fn what_is_absent_has_its_own_default() {
    let card = |link: &[(&str, &str)]| card("m", "n", vec![empty("link", link)]);
    assert_eq!(of_device(card(&[]), card(&[("state", "down")])), ["network card m: link: up → down"]);
    let boot = |attributes: &[(&str, &str)]| element("disk", &[], vec![empty("boot", attributes)]);
    assert_eq!(
        of_device(boot(&[("order", "1"), ("loadparm", "x")]), boot(&[])),
        ["disk: boot/loadparm: x → not set", "disk: boot order: 1 → none"]
    );
    assert_eq!(of_setting(text("title", "desk"), text("title", "")), ["title: desk → empty"]);
}

#[test]
fn sizes_are_compared_in_bytes_and_nothing_beside_them_is_left_out() {
    let memory =
        |text: &str, attributes: &[(&str, &str)]| Element { text: text.to_owned(), ..empty("memory", attributes) };
    let gib = || memory("1", &[("unit", "GiB")]);
    for same in [
        memory("1073741824", &[("unit", "b")]),
        memory("1073741824", &[("unit", "bytes")]),
        memory("1048576", &[]),
        memory("1048576", &[("unit", "k")]),
        memory("1024", &[("unit", "MiB")]),
        memory("1024", &[("unit", "M")]),
        memory("1", &[("unit", "G")]),
    ] {
        assert_eq!(of_setting(same.clone(), gib()), Vec::<String>::new(), "{same:?}");
    }
    let dumped = |dump| memory("1", &[("unit", "GiB"), ("dumpCore", dump)]);
    assert_eq!(of_setting(dumped("on"), dumped("off")), ["memory/dumpCore: on → off"]);
    let with = |child| Element { children: vec![empty(child, &[])], ..gib() };
    assert_eq!(of_setting(with("a"), with("b")), ["memory/a is removed", "memory/b is added"]);
    let told = DefinitionChange::disk_size("vda", 0, 1 << 40).map(|change| change.to_string());
    assert_eq!(told.as_deref(), Some("disk vda grows: 0 bytes → 1 TiB"));
}

#[test]
fn the_memory_at_the_start_is_told_where_it_does_not_follow_the_memory() {
    let sizes = |maximum, start| domain(vec![memory("memory", maximum), memory("currentMemory", start)], vec![]);
    assert_eq!(told(sizes("4096", "4096"), sizes("1024", "1024")), ["memory: 4 MiB → 1 MiB"]);
    assert_eq!(
        told(sizes("4096", "2048"), sizes("2048", "1024")),
        ["memory: 4 MiB → 2 MiB", "memory at the start (balloon): 2 MiB → 1 MiB"]
    );
}

/// Two of each kind, in another order on the other side: each is compared with itself.
#[test]
fn elements_are_paired_by_what_identifies_them() {
    let target = |name: &'static str| move |id: &str| vec![empty("target", &[(name, id)])];
    let (dir, port, name) = (target("dir"), target("port"), target("name"));
    let address = |id: &str| vec![element("source", &[], vec![empty("address", &[("bus", id)])])];
    type Children<'a> = &'a dyn Fn(&str) -> Vec<Element>;
    let by_child: [(&str, Children<'_>); 6] = [
        ("filesystem", &dir),
        ("channel", &name),
        ("serial", &port),
        ("console", &port),
        ("parallel", &port),
        ("hostdev", &address),
    ];
    let of = |make: &dyn Fn(&str, &str) -> Element| {
        told(domain(vec![], vec![make("a", "1"), make("b", "1")]), domain(vec![], vec![make("b", "2"), make("a", "2")]))
    };
    for (kind, children) in by_child {
        let found = of(&|id, value| element(kind, &[("x", value)], children(id)));
        assert!(found.len() == 2 && found.iter().all(|change| change.ends_with(": x: 1 → 2")), "{found:?}");
    }
    let by_attribute = [
        ("graphics", "type"),
        ("input", "type"),
        ("feature", "name"),
        ("timer", "name"),
        ("parameter", "name"),
        ("variable", "name"),
        ("entry", "name"),
        ("audio", "id"),
        ("cell", "id"),
        ("iothread", "id"),
    ];
    for (kind, attribute) in by_attribute {
        let found = of(&|id, value| empty(kind, &[(attribute, id), ("x", value)]));
        assert!(found.len() == 2 && found.iter().all(|change| change.ends_with(": x: 1 → 2")), "{kind}: {found:?}");
    }
    let found = of(&|index, value| empty("controller", &[("type", "usb"), ("index", index), ("x", value)]));
    assert_eq!(found, ["controller usb a: x: 1 → 2", "controller usb b: x: 1 → 2"]);
}

#[test]
fn an_element_that_leaves_is_described_without_secrets_and_numbers_of_a_run() {
    let odd = empty("unheard", &[("index", "1"), ("of", "2"), ("passwd", "s3cret"), ("portid", "3")]);
    assert_eq!(told(domain(vec![], vec![odd]), domain(vec![], vec![])), ["unheard (of=2) is removed"]);
}

#[test]
fn a_run_and_the_names_that_libvirt_makes_are_no_change() {
    let of_run = |id: &str, alias: Option<&str>| {
        let mut disk = disk("vda", "/images/a", None);
        disk.children[0].attributes.insert("index".to_owned(), id.to_owned());
        let alias: Vec<(&str, &str)> = alias.map(|alias| ("name", alias)).into_iter().collect();
        disk.children.push(empty("alias", &alias));
        let mut domain = domain(vec![], vec![disk]);
        domain.attributes.insert("id".to_owned(), id.to_owned());
        domain
    };
    let none = Vec::<String>::new();
    assert_eq!(told(of_run("1", Some("virtio-disk0")), of_run("2", Some("virtio-disk1"))), none);
    assert_eq!(told(of_run("1", None), of_run("2", Some("virtio-disk1"))), none);
    assert_eq!(told(of_run("1", Some("ua-a")), of_run("2", Some("ua-b"))), ["disk vda: alias/name: ua-a → ua-b"]);
    assert_eq!(told(of_run("1", Some("ua-a")), of_run("2", None)), ["disk vda: alias (name=ua-a) is removed"]);
}

#[test]
fn what_the_next_start_and_the_process_have_in_common_is_told_once() {
    let definition = |cpus: &str, devices: Vec<Element>| Definition {
        next_start: Some(domain(vec![text("vcpu", cpus)], vec![])),
        running: Some(domain(vec![text("vcpu", cpus)], devices)),
    };
    let now = definition("4", vec![card("m", "n", vec![])]);
    let told: Vec<_> = changes(&now, &definition("2", vec![]), false).iter().map(ToString::to_string).collect();
    assert_eq!(told, ["vCPUs: 4 → 2", "network card m (network n) is removed"]);
}

#[test]
fn the_number_of_changes_is_bounded_and_the_others_are_counted() {
    let found = |number: usize| {
        told(domain((0..number).map(|n| text(&format!("s{n}"), "1")).collect(), vec![]), domain(vec![], vec![]))
    };
    assert_eq!((found(MOST).len(), found(MOST)[MOST - 1].as_str()), (MOST, "s63 (1) is removed"));
    assert_eq!((found(MOST + 2).len(), found(MOST + 2)[MOST].as_str()), (MOST + 1, "2 further settings changes"));
}
