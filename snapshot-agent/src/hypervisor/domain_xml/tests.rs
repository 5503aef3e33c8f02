//! Real XML in, facts out.

use proptest::prelude::*;

use super::super::xml_samples::{DOMAIN_OFF, DOMAIN_RUNNING};
use super::*;

fn disk(target: &str, path: Option<&str>, format: &str, read_only: bool) -> Disk {
    Disk { target: target.to_owned(), path: path.map(PathBuf::from), format: format.to_owned(), read_only }
}

#[test]
fn a_running_machine() {
    let domain = parse(DOMAIN_RUNNING).unwrap();
    assert_eq!((domain.id, domain.name.as_str()), (Some(1), "t1"));
    assert_eq!(domain.memory_bytes(), 16 << 20);
    assert_eq!(domain.nvram(), Nvram::Absent);
    let expected = [
        disk("vda", Some("/images/vda.qcow2"), "qcow2", false),
        disk("vdb", Some("/images/vdb.qcow2"), "qcow2", false),
    ];
    assert_eq!(domain.disks().collect::<Vec<_>>(), expected);
    assert_eq!(domain.media().count(), 0);
}

#[test]
fn a_machine_with_every_kind_of_disk() {
    let domain = parse(DOMAIN_OFF).unwrap();
    assert_eq!((domain.id, domain.name.as_str()), (None, "Übung & \"Quotes\""));
    assert_eq!(domain.memory_bytes(), 1 << 30);
    assert_eq!(domain.nvram(), Nvram::Qcow2);
    let expected = [
        disk("vda", Some("/var/lib/images/a & b.qcow2"), "qcow2", false),
        disk("vdb", Some("/dev/vg/lv"), "raw", true),
        disk("vdc", None, "rbd", false),
        disk("vdd", None, "qcow2", false),
        disk("fda", Some("/floppy.img"), "raw", false),
    ];
    assert_eq!(domain.disks().collect::<Vec<_>>(), expected);
    let media: Vec<Medium> = domain.media().collect();
    assert_eq!(media, [Medium { target: "sda".to_owned(), path: "/iso/absent.iso".into() }]);
}

#[test]
fn nvram_is_raw_unless_it_says_otherwise() {
    for (element, expected) in [
        ("<nvram>/vars.fd</nvram>", Nvram::Raw),
        ("<nvram template='/t.fd' templateFormat='raw' format='raw'>/vars.fd</nvram>", Nvram::Raw),
        ("<nvram format='qcow2'>/vars.qcow2</nvram>", Nvram::Qcow2),
        ("<loader readonly='yes' type='pflash'>/code.fd</loader>", Nvram::Absent),
    ] {
        let xml = format!("<domain><name>x</name><memory>1</memory><os>{element}</os></domain>");
        assert_eq!(parse(&xml).unwrap().nvram(), expected, "{element}");
    }
}

#[test]
fn units_of_memory() {
    for (memory, expected) in [
        ("<memory>4</memory>", 4096),
        ("<memory unit='bytes'>4</memory>", 4),
        ("<memory unit='GiB'>4</memory>", 4 << 30),
        ("<memory unit='TiB'>18446744073709551615</memory>", u64::MAX),
    ] {
        let xml = format!("<domain><name>x</name>{memory}<os/></domain>");
        assert_eq!(parse(&xml).unwrap().memory_bytes(), expected);
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(text in any::<String>(), cut in 0usize..DOMAIN_OFF.trim_end().len()) {
        let _ = parse(&text);
        let mut cut = cut;
        while !DOMAIN_OFF.is_char_boundary(cut) { cut -= 1; }
        prop_assert!(parse(&DOMAIN_OFF[..cut]).is_err());
    }
}
