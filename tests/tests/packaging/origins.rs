//! Where Debian's packages may come from: on Debian 12 libvirt, QEMU and SeaBIOS are from backports, and nothing else is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FROM_BACKPORTS: [&str; 3] = ["libvirt", "qemu", "seabios"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `packaging/test/origins.sh check`, which `make bare-test` asks of what setup.sh installed in a bare Debian.
fn check(list: &str) -> Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), list).unwrap();
    let script = root().join("packaging/test/origins.sh");
    Command::new(script).arg("check").arg(file.path()).output().unwrap()
}

#[test]
fn a_package_from_backports_or_from_nowhere_is_found() {
    let good = "bash 5.2.15-2 bookworm/main bash\n\
        libvirt0 11.3.0-2~bpo12+1 bookworm-backports/main libvirt\n\
        qemu-utils 1:10.0.2 bookworm-backports/main qemu\n\
        seabios 1.16.3 bookworm-backports/main seabios\n\
        libssl3 3.0.19 bookworm/main,bookworm-security/main openssl\n\
        qemu-old 1:7.2 bookworm/main qemu\n";
    let output = check(good);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bad = [
        "systemd 254.26-1~bpo12+1 bookworm-backports/main systemd",
        "libsystemd0 254.26-1~bpo12+1 bookworm-backports/main systemd",
        // It is the source package that counts.
        "libvirt-python 11.3.0-1~bpo12+1 bookworm-backports/main libvirt-python",
        "qemu-system-x86 1:10.0.2 bookworm-backports/main,bookworm-backports-sloppy/main qemu-extras",
        "brought-by-hand 1.0 unknown brought-by-hand",
        "half-a-line bookworm/main",
    ];
    for line in bad {
        let output = check(&format!("{good}{line}\n"));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(line) && !told.contains("libvirt0"), "{line}: {told}");
    }
    assert!(!check("").status.success(), "a list of nothing is no proof");
}

/// The files of ours by which apt prefers packages of a release.
fn scripts() -> Vec<(String, String)> {
    let mut command = Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let listed = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let is_script = |name: &&str| !name.ends_with(".rs") && !name.ends_with(".md");
    let read = |name: &str| fs::read_to_string(root().join(name)).ok().map(|text| (name.to_owned(), text));
    listed.lines().filter(is_script).filter_map(read).filter(|(_, text)| text.contains("Pin: release")).collect()
}

#[test]
fn only_libvirt_qemu_and_seabios_are_pinned_to_backports() {
    let mut pins = 0;
    for (name, text) in scripts() {
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            for pin in line.split("Package: ").skip(1) {
                pins += 1;
                let sources = pin.split(['\'', '"', '\\']).next().unwrap().split_whitespace();
                let sources: BTreeSet<&str> = sources.map(|it| it.strip_prefix("src:").unwrap_or(it)).collect();
                assert_eq!(sources, BTreeSet::from(FROM_BACKPORTS), "{name}: {line}");
            }
            // By these apt would take everything, or one package and what it depends on, from there.
            let whole =
                line.contains("-t ") || line.contains("--target-release") || line.contains("APT::Default-Release");
            assert!(!whole || !line.contains("backports"), "{name}: {line}");
            assert!(!line.contains("/bookworm-backports"), "{name}: {line}");
        }
    }
    assert!(pins >= 2, "setup.sh and the roots of tests pin what comes from backports");
}
