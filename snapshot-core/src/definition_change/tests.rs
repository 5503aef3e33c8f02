//! Changes between hand-made definitions. Real ones are compared where XML is read, in the agent.

use proptest::prelude::*;

use super::*;

pub(super) fn element(name: &str, attributes: &[(&str, &str)], children: Vec<Element>) -> Element {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Element { name: name.to_owned(), attributes, text: String::new(), children }
}

pub(super) fn text(name: &str, text: &str) -> Element {
    Element { text: text.to_owned(), ..element(name, &[], vec![]) }
}

pub(super) fn memory(name: &str, kib: &str) -> Element {
    Element { text: kib.to_owned(), ..element(name, &[("unit", "KiB")], vec![]) }
}

pub(super) fn card(mac: &str, network: &str, more: Vec<Element>) -> Element {
    let source = element("source", &[("network", network)], vec![]);
    let children = [vec![element("mac", &[("address", mac)], vec![]), source], more].concat();
    element("interface", &[("type", "network")], children)
}

pub(super) fn disk(target: &str, file: &str, order: Option<&str>) -> Element {
    let mut children =
        vec![element("source", &[("file", file)], vec![]), element("target", &[("dev", target)], vec![])];
    children.extend(order.map(|order| element("boot", &[("order", order)], vec![])));
    element("disk", &[("type", "file"), ("device", "disk")], children)
}

fn os(boot: &[&str]) -> Element {
    element("os", &[], boot.iter().map(|dev| element("boot", &[("dev", dev)], vec![])).collect())
}

pub(super) fn domain(mut settings: Vec<Element>, devices: Vec<Element>) -> Element {
    settings.push(element("devices", &[], devices));
    element("domain", &[("type", "kvm")], settings)
}

pub(super) fn told(now: Element, then: Element) -> Vec<String> {
    let definition = |domain| Definition { next_start: Some(domain), running: None };
    changes(&definition(now), &definition(then), false).iter().map(ToString::to_string).collect()
}

#[test]
fn each_setting_is_told_by_name_and_value() {
    let now = domain(
        vec![
            memory("memory", "65536"),
            memory("currentMemory", "65536"),
            text("vcpu", "4"),
            text("title", "Room 12 &amp; 13"),
            os(&["hd", "cdrom"]),
        ],
        vec![
            disk("vda", "/images/a", Some("1")),
            card("52:54:00:00:00:01", "isolated", vec![element("link", &[("state", "down")], vec![])]),
            card("52:54:00:00:00:02", "default", vec![]),
            element("sound", &[("model", "ich9")], vec![]),
        ],
    );
    let then = domain(
        vec![
            memory("memory", "16384"),
            memory("currentMemory", "16384"),
            text("vcpu", "2"),
            text("description", "old"),
            os(&["cdrom", "hd"]),
        ],
        vec![
            disk("vda", "/images/a", None),
            disk("vdb", "/images/b", None),
            card("52:54:00:00:00:01", "default", vec![]),
        ],
    );
    assert_eq!(
        told(now, then),
        [
            "memory: 64 MiB → 16 MiB",
            "vCPUs: 4 → 2",
            "title (Room 12 & 13) is removed",
            "boot order: hd, cdrom → cdrom, hd",
            "disk vda: boot order: 1 → none",
            "network card 52:54:00:00:00:01: network: isolated → default",
            "network card 52:54:00:00:00:01: link: down → up",
            "network card 52:54:00:00:00:02 (network default) is removed",
            "sound card ich9 is removed",
            "disk vdb (/images/b) is added",
            "description (old) is added",
        ]
    );
}

#[test]
fn what_has_no_name_is_told_by_its_path() {
    let tune = |shares: &str| element("cputune", &[], vec![text("shares", shares)]);
    let cached = |mode: Option<&str>| {
        let driver: Vec<(&str, &str)> = mode.map(|mode| ("cache", mode)).into_iter().collect();
        let children = vec![element("target", &[("dev", "vda")], vec![]), element("driver", &driver, vec![])];
        element("disk", &[], children)
    };
    let now = domain(vec![tune("512")], vec![cached(Some("none")), element("unheard", &[("of", "1")], vec![])]);
    let then = domain(vec![tune("1024"), element("new:thing", &[], vec![])], vec![cached(None)]);
    assert_eq!(
        told(now, then),
        [
            "cputune/shares: 512 → 1024",
            "disk vda: driver/cache: none → not set",
            "unheard (of=1) is removed",
            "new:thing is added",
        ]
    );
}

#[test]
fn secrets_are_not_told_and_their_change_is() {
    let screen = |password: &str| element("graphics", &[("type", "vnc"), ("passwd", password)], vec![]);
    let told = told(domain(vec![], vec![screen("s3cret")]), domain(vec![], vec![screen("0ther")]));
    assert_eq!(told, ["graphics vnc: password: the present one → that of the snapshot"]);
}

#[test]
fn a_running_vm_is_compared_as_it_runs_as_well() {
    let off = domain(vec![memory("memory", "16384")], vec![]);
    let running = |devices| {
        let mut domain = domain(vec![memory("memory", "16384"), text("title", "told once")], devices);
        domain.attributes.insert("id".to_owned(), "7".to_owned());
        domain
    };
    let now = Definition {
        next_start: Some(off.clone()),
        running: Some(running(vec![card("52:54:00:00:00:03", "default", vec![])])),
    };
    let then = Definition { next_start: Some(off), running: Some(running(vec![])) };
    let told: Vec<_> = changes(&now, &then, false).iter().map(ToString::to_string).collect();
    assert_eq!(told, ["network card 52:54:00:00:00:03 (network default) is removed"]);
    // A snapshot of which only the process is recorded.
    let only = Definition { next_start: None, ..then.clone() };
    let told: Vec<_> = changes(&now, &only, false).iter().map(ToString::to_string).collect();
    assert_eq!(told, ["network card 52:54:00:00:00:03 (network default) is removed"]);
    assert_eq!(changes(&now, &Definition::default(), false).len(), 1, "nothing is recorded, and that is told");
    assert_eq!(changes(&Definition::default(), &then, false).len(), 1);
}

#[test]
fn external_images_move_without_a_change() {
    let now = domain(vec![], vec![disk("vda", "/images/a.overlay", None)]);
    let then = domain(vec![], vec![disk("vda", "/images/a", None)]);
    let definition = |domain: &Element| Definition { next_start: Some(domain.clone()), running: None };
    assert_eq!(changes(&definition(&now), &definition(&then), true), []);
    assert_eq!(told(now, then), ["disk vda: image: /images/a.overlay → /images/a"]);
}

#[test]
fn disks_shrink_and_grow() {
    let told = |now, then| DefinitionChange::disk_size("vda", now, then).map(|change| change.to_string());
    assert_eq!(told(40 << 30, 20 << 30).as_deref(), Some("disk vda shrinks: 40 GiB → 20 GiB"));
    assert_eq!(told(1 << 20, (1 << 20) + 512).as_deref(), Some("disk vda grows: 1 MiB → 1049088 bytes"));
    assert_eq!(told(7, 7), None);
}

#[test]
fn an_emulated_tpm_is_found() {
    let tpm = |kind: &str| {
        let backend = element("backend", &[("type", kind)], vec![]);
        let domain = domain(vec![], vec![element("tpm", &[("model", "tpm-crb")], vec![backend])]);
        Definition { next_start: Some(domain), running: None }
    };
    assert!(tpm("emulator").has_emulated_tpm());
    assert!(!tpm("passthrough").has_emulated_tpm());
    assert!(!Definition::default().has_emulated_tpm());
}

fn any_element() -> impl Strategy<Value = Element> {
    let leaf = ("[a-d]", prop::collection::btree_map("[a-c]", "[xyz]", 0..3), "[xy]{0,1}")
        .prop_map(|(name, attributes, text)| Element { name, attributes, text, children: Vec::new() });
    leaf.prop_recursive(4, 32, 4, |inner| {
        ("[a-d]", prop::collection::btree_map("[a-c]", "[xyz]", 0..3), prop::collection::vec(inner, 0..4))
            .prop_map(|(name, attributes, children)| Element { name, attributes, text: String::new(), children })
    })
}

fn sorted(element: &Element) -> Element {
    let mut children: Vec<Element> = element.children.iter().map(sorted).collect();
    children.sort();
    Element { children, ..element.clone() }
}

proptest! {
    /// No difference is hidden, and none is made up.
    #[test]
    fn two_definitions_are_told_apart_exactly_when_they_differ(
        now in prop::collection::vec(any_element(), 0..4),
        then in prop::collection::vec(any_element(), 0..4),
    ) {
        let (now, then) = (domain(now, vec![]), domain(then, vec![]));
        prop_assert_eq!(told(now.clone(), then.clone()).is_empty(), sorted(&now) == sorted(&then));
    }

    #[test]
    fn a_definition_does_not_differ_from_itself(devices in prop::collection::vec(any_element(), 0..4)) {
        let domain = domain(vec![], devices);
        prop_assert_eq!(told(domain.clone(), domain), Vec::<String>::new());
    }
}
