//! Comparisons of hand-made machines and of generated ones. Real ones are compared where XML is read, in the agent.

use proptest::prelude::*;

use super::*;

fn element(name: &str, attributes: &[(&str, &str)], children: Vec<Element>) -> Element {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Element { name: name.to_owned(), attributes, text: String::new(), children }
}

fn text(name: &str, text: &str) -> Element {
    Element { text: text.to_owned(), ..element(name, &[], vec![]) }
}

fn disk(target: &str, index: &str) -> Element {
    let source = element("source", &[("file", "/images/a.qcow2"), ("index", index)], vec![]);
    element("disk", &[("type", "file")], vec![source, element("target", &[("dev", target)], vec![])])
}

fn domain(devices: Vec<Element>) -> Element {
    let vcpu = text("vcpu", "2");
    let name = text("name", "desk");
    element("domain", &[("id", "7")], vec![name, text("memory", "16384"), vcpu, element("devices", &[], devices)])
}

fn machine(running: Element) -> Hardware {
    let cpu = element("cpu", &[("mode", "custom")], vec![text("model", "qemu64")]);
    Hardware { next_start: Some(running.clone()), cpu: Some(cpu), running }
}

fn difference(then: &Hardware, now: &Hardware) -> String {
    match compare(then, now) {
        Comparison::Same => String::new(),
        Comparison::Different(what) => what,
    }
}

#[test]
fn what_belongs_to_the_run_and_to_the_host_has_no_weight() {
    let serial = |path: &str| {
        let source = element("source", &[("mode", "bind"), ("path", path)], vec![]);
        element("serial", &[("type", "unix")], vec![source, element("target", &[("port", "0")], vec![])])
    };
    let card = |tap: &str, port: &str| {
        let source = element("source", &[("network", "default"), ("portid", port), ("bridge", port)], vec![]);
        element("interface", &[("type", "network")], vec![source, element("target", &[("dev", tap)], vec![])])
    };
    let screen = |port: &str| {
        let listen = element("listen", &[("address", port)], vec![]);
        element("graphics", &[("type", "spice"), ("port", port), ("passwd", port)], vec![listen])
    };
    let mut now = domain(vec![screen("5901"), card("vnet4", "b"), serial("/run/2/s"), disk("vda", "9")]);
    now.attributes.insert("id".to_owned(), "12".to_owned());
    now.children[0].text = "desktop".to_owned();
    now.children.push(text("title", "Renamed"));
    now.children.push(element("seclabel", &[("type", "dynamic")], vec![text("label", "+64055:+994")]));
    now.children.push(text("currentMemory", "8192"));
    let then = domain(vec![disk("vda", "1"), serial("/run/1/s"), card("vnet0", "a"), screen("5900")]);
    assert_eq!(difference(&machine(then), &machine(now)), "");
}

#[test]
fn whatever_the_guest_sees_counts() {
    let then = machine(domain(vec![disk("vda", "1")]));
    let found = |now: Element| difference(&then, &machine(now));
    assert_eq!(found(domain(vec![disk("vda", "1"), disk("vdb", "2")])), "devices/disk vdb is new");
    assert_eq!(found(domain(vec![])), "devices/disk vda is gone");
    let mut other = domain(vec![disk("vda", "1")]);
    other.children[1].text = "32768".to_owned();
    assert_eq!(found(other), "memory was \u{201c}16384\u{201d} and is \u{201c}32768\u{201d}");
    let mut other = disk("vda", "1");
    other.children[0].attributes.insert("file".to_owned(), "/images/b.qcow2".to_owned());
    let told = "devices/disk/source: file was \u{201c}/images/a.qcow2\u{201d} and is \u{201c}/images/b.qcow2\u{201d}";
    assert_eq!(found(domain(vec![other])), told);
    assert_eq!(found(domain(vec![disk("vda", "1"), element("novelty", &[], vec![])])), "devices/novelty is new");
    // Twice the same is not once the same.
    assert_ne!(found(domain(vec![disk("vda", "1"), disk("vda", "1")])), "");
}

#[test]
fn the_cpu_and_the_next_start_count_and_have_to_be_known() {
    let then = machine(domain(vec![disk("vda", "1")]));
    let mut now = then.clone();
    now.cpu = Some(element("cpu", &[("mode", "custom")], vec![text("model", "EPYC")]));
    assert!(difference(&then, &now).starts_with("cpu/model was"), "{}", difference(&then, &now));
    now.cpu = None;
    assert_eq!(difference(&then, &now), "the CPU of then or of now is not known");
    assert_eq!(difference(&now, &now), "the CPU of then or of now is not known");
    let mut now = then.clone();
    now.next_start = Some(domain(vec![disk("vda", "1"), disk("vdb", "2")]));
    assert_eq!(difference(&then, &now), "at its next start: devices/disk vdb is new");
    now.next_start = None;
    assert_eq!(difference(&then, &now), "how the machine starts the next time is not known");
}

#[test]
fn what_has_state_outside_of_qemu_is_never_the_same() {
    for device in ["tpm", "hostdev", "filesystem", "shmem"] {
        let with = machine(domain(vec![disk("vda", "1"), element(device, &[], vec![])]));
        assert!(difference(&with, &with).contains(device), "{device}");
    }
    let mut uefi = domain(vec![]);
    uefi.children.push(element("os", &[], vec![text("nvram", "/nvram/desk.fd")]));
    assert!(difference(&machine(uefi.clone()), &machine(uefi)).contains("os/nvram"));
}

#[test]
fn the_bridge_that_a_card_is_defined_on_counts_and_the_one_of_its_network_does_not() {
    let card = |attributes: &[(&str, &str)]| {
        machine(domain(vec![element("interface", &[], vec![element("source", attributes, vec![])])]))
    };
    assert_eq!(
        difference(&card(&[("network", "n"), ("bridge", "a")]), &card(&[("network", "n"), ("bridge", "b")])),
        ""
    );
    let told = difference(&card(&[("bridge", "a")]), &card(&[("bridge", "b")]));
    assert_eq!(told, "devices/interface/source: bridge was \u{201c}a\u{201d} and is \u{201c}b\u{201d}");
}

#[test]
fn what_is_exchanged_for_another_is_told_as_new() {
    let (then, now) = (machine(domain(vec![disk("vda", "1")])), machine(domain(vec![disk("vdb", "1")])));
    assert_eq!(difference(&then, &now), "devices/disk vdb is new");
}

/// Names of which some have no weight at some places.
fn any_name() -> impl Strategy<Value = String> {
    let names = ["name", "devices", "disk", "source", "target", "graphics", "seclabel", "console", "novelty", "vcpu"];
    prop::sample::select(names.map(str::to_owned).to_vec())
}

fn any_element() -> impl Strategy<Value = Element> {
    let attributes = || prop::collection::btree_map("(dev|file|index|port|id)", "[ab]", 0..3);
    let leaf = (any_name(), attributes(), "[ab]?").prop_map(|(name, attributes, text)| Element {
        name,
        attributes,
        text,
        children: Vec::new(),
    });
    leaf.prop_recursive(4, 24, 4, move |inner| {
        (any_name(), attributes(), prop::collection::vec(inner, 0..4))
            .prop_map(|(name, attributes, children)| Element { name, attributes, text: String::new(), children })
    })
}

fn shuffled(element: &Element) -> Element {
    let children = element.children.iter().rev().map(shuffled).collect();
    Element { children, ..element.clone() }
}

/// All elements below, each as the way to it.
fn places(element: &Element, at: &[usize], found: &mut Vec<Vec<usize>>) {
    for (number, child) in element.children.iter().enumerate() {
        let place = [at, &[number]].concat();
        found.push(place.clone());
        places(child, &place, found);
    }
}

proptest! {
    #[test]
    fn a_machine_is_the_same_as_itself_in_any_order(root in any_element()) {
        prop_assert_eq!(compare(&machine(root.clone()), &machine(shuffled(&root))), Comparison::Same);
    }

    #[test]
    fn a_difference_is_one_both_ways(a in any_element(), b in any_element()) {
        let (a, b) = (machine(a), machine(b));
        let there = compare(&a, &b) == Comparison::Same;
        prop_assert_eq!(there, compare(&b, &a) == Comparison::Same);
        prop_assert_eq!(there, weighed(&a.running, "") == weighed(&b.running, ""));
    }

    /// What is added anywhere and is not known here is a difference, unless it is within what has no weight at all.
    #[test]
    fn what_is_not_known_counts(root in any_element(), place in any::<prop::sample::Index>()) {
        let mut all = vec![Vec::new()];
        places(&root, &[], &mut all);
        let (mut now, mut path, mut free) = (root.clone(), String::new(), false);
        let mut at = &mut now;
        for number in &all[place.index(all.len())] {
            at = &mut at.children[*number];
            path = within(&path, &at.name);
            free |= FREE.contains(&path.as_str()) || FREE_ANYWHERE.contains(&at.name.as_str());
        }
        at.children.push(element("unheard-of", &[("of", "x")], vec![]));
        let is_same = compare(&machine(root), &machine(now)) == Comparison::Same;
        prop_assert_eq!(is_same, free);
    }
}
