//! What is in the Debian packages, as it is made of this build; that they work is `make deb-test`'s business.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::tools::binary;

const PARTS: [&str; 3] = ["agent", "api", "gateway"];

fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the packages; their files by name.
fn packages(into: &Path) -> Vec<PathBuf> {
    let manuals = into.join("manuals");
    std::fs::create_dir_all(into).unwrap();
    run(Command::new(binary("manuals").unwrap()).arg(&manuals));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let programs = binary("snapshot-api").unwrap();
    let out = into.join("out");
    let script = root.join("packaging/debian/build.sh");
    run(Command::new(script).env("DEB_COMPRESSION", "none").args([programs.parent().unwrap(), &manuals, &out]));
    let mut files: Vec<PathBuf> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What a package has: its path to mode and owner.
fn contents(package: &Path) -> BTreeMap<String, (String, String)> {
    let listed = run(Command::new("dpkg-deb").arg("-c").arg(package));
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[5].trim_start_matches('.').to_owned(), (words[0].to_owned(), words[1].to_owned()))
    };
    listed.lines().map(entry).collect()
}

fn field(package: &Path, field: &str) -> String {
    run(Command::new("dpkg-deb").arg("-f").arg(package).arg(field)).trim().to_owned()
}

fn control(package: &Path, file: &str) -> String {
    run(Command::new("dpkg-deb").arg("-I").arg(package).arg(file))
}

#[test]
fn packages_have_what_an_administrator_needs_and_nothing_is_started_by_them() {
    let dir = tempfile::tempdir().unwrap();
    let made = packages(dir.path());
    let names: Vec<String> = made.iter().map(|file| field(file, "Package")).collect();
    let expected = PARTS.map(|part| format!("ravada-snapshots-{part}"));
    assert_eq!(names[0], "libravada-snapshots-perl");
    assert_eq!(names[1..], expected);
    for (part, package) in PARTS.iter().zip(&made[1..]) {
        let (has, name, program) = (contents(package), format!("ravada-snapshots-{part}"), format!("snapshot-{part}"));
        let is = |path: &str, mode: &str| {
            let found = has.get(path).unwrap_or_else(|| panic!("{name} has no {path}"));
            assert_eq!((found.0.as_str(), found.1.as_str()), (mode, "root/root"), "{path}");
        };
        is(&format!("/usr/bin/{program}"), "-rwxr-xr-x");
        for file in [
            format!("/usr/lib/systemd/system/{program}.service"),
            format!("/usr/lib/sysusers.d/{name}.conf"),
            format!("/etc/ravada-snapshots/{part}.toml"),
            format!("/usr/share/man/man1/{program}.1.gz"),
            format!("/usr/share/bash-completion/completions/{program}"),
            format!("/usr/share/zsh/vendor-completions/_{program}"),
            format!("/usr/share/fish/vendor_completions.d/{program}.fish"),
            format!("/usr/share/doc/{name}/copyright"),
            format!("/usr/share/doc/{name}/changelog.gz"),
        ] {
            is(&file, "-rw-r--r--");
        }
        is("/etc/ravada-snapshots/", "drwxr-xr-x");
        assert!(has.values().all(|(_, owner)| owner == "root/root"));
        // What dpkg asks about and does not overwrite when it was edited: the settings, and nothing else.
        assert_eq!(control(package, "conffiles").trim(), format!("/etc/ravada-snapshots/{part}.toml"));
        for script in ["postinst", "prerm", "postrm"] {
            let text = control(package, script);
            assert!(!text.contains('@'), "{name}: something was not filled in: {text}");
            let syntax = Command::new("sh").arg("-n").arg("-c").arg(&text).status().unwrap();
            assert!(syntax.success(), "{name}: {script}");
        }
        // A pre-release sorts before its release.
        assert_eq!(field(package, "Version"), format!("{}-1", env!("CARGO_PKG_VERSION").replacen('-', "~", 1)));
    }
    assert!(contents(&made[2]).contains_key("/usr/bin/snapctl"));
    let needs = field(&made[1], "Depends");
    for needed in ["libvirt0 (>= 9.9)", "qemu-utils", "systemd", "libc6"] {
        assert!(needs.contains(needed), "{needed} is not in {needs}");
    }
    assert_eq!(field(&made[0], "Architecture"), "all");
    assert!(contents(&made[0]).contains_key("/usr/share/perl5/Ravada/Snapshots/Client.pm"));

    // Of the same build the same packages, byte by byte.
    let again = packages(&dir.path().join("again"));
    for (one, other) in made.iter().zip(&again) {
        assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap(), "{}", one.display());
    }
}
