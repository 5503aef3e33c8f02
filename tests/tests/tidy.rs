//! What a compiler does not hold: who may use whom, what may be used where, and how the tree is kept.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Our crates, and which others of them each may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("snapshot-core", &[]),
    ("doctor", &[]),
    ("mtls", &["doctor", "limits"]),
    ("limits", &[]),
    ("public-port", &["mtls", "limits"]),
    ("supervised", &[]),
    ("traces", &[]),
    ("capability", &["snapshot-core"]),
    ("proto", &["snapshot-core"]),
    (
        "snapshot-api",
        &["doctor", "snapshot-core", "proto", "mtls", "limits", "public-port", "capability", "supervised", "traces"],
    ),
    ("snapshot-agent", &["doctor", "snapshot-core", "proto", "mtls", "capability", "supervised", "traces"]),
    ("snapshot-gateway", &["doctor", "mtls", "limits", "public-port", "supervised", "traces"]),
    ("snapctl", &["doctor", "proto"]),
    // What the packages say of the programs is made from how these understand their arguments.
    ("manuals", &["snapshot-api", "snapshot-agent", "snapshot-gateway", "snapctl"]),
    ("tests", &["snapshot-core", "proto", "mtls", "capability", "snapshot-api", "snapshot-agent", "snapshot-gateway"]),
];

/// Crates of others that only one of ours may depend on.
const WRAPPED: &[(&str, &[&str])] = &[
    ("rusqlite", &["snapshot-api"]),
    ("virt", &["snapshot-agent"]),
    ("virt-sys", &["snapshot-agent"]),
    ("connectrpc", &["snapshot-gateway"]),
    ("governor", &["limits"]),
];

/// What the pure core may not know.
const EFFECTS: &[&str] = &["tokio", "tonic", "prost", "rusqlite", "virt", "virt-sys", "tracing", "jiff", "hyper"];

/// What may be named only below certain paths.
const CONFINED: &[(&str, &[&str])] = &[
    ("rusqlite::", &["snapshot-api/src/store"]),
    // The agent's own contract test defines and starts its guest by libvirt's calls.
    ("virt::", &["snapshot-agent/src/hypervisor", "snapshot-agent/tests/agent"]),
    ("virt_sys::", &["snapshot-agent/src/hypervisor"]),
];

const MAX_LINES: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The files that git knows or would take, below the root.
fn files() -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(listed.status.success(), "git: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).unwrap();
    let read = |name: &str| fs::read_to_string(root().join(name)).ok().map(|text| (name.to_owned(), text));
    let files: Vec<_> = names.lines().filter_map(read).collect();
    assert!(files.len() > 100, "git knows {} files only", files.len());
    files
}

fn sources() -> impl Iterator<Item = (String, String)> {
    files().into_iter().filter(|(name, _)| name.ends_with(".rs"))
}

/// The direct dependencies of each of our crates, without those for tests alone.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let direct = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| dependency["kind"] != "dev")
            .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
            .collect()
    };
    packages.iter().map(|package| (package["name"].as_str().unwrap().to_owned(), direct(package))).collect()
}

#[test]
fn crates_use_only_whom_they_may() {
    let dependencies = dependencies();
    let known: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = dependencies.keys().map(String::as_str).collect();
    assert_eq!(found, known, "a crate came or went: decide whom it may use");
    for (name, allowed) in MAY_USE {
        for used in dependencies[*name].iter().filter(|used| known.contains(used.as_str())) {
            assert!(allowed.contains(&used.as_str()), "{name} may not use {used}");
        }
    }
    for (wrapped, users) in WRAPPED {
        for (name, used) in &dependencies {
            let free = users.contains(&name.as_str()) || !used.contains(*wrapped);
            assert!(free, "{name} may not use {wrapped}, only {users:?} may");
        }
    }
    for effect in EFFECTS {
        assert!(!dependencies["snapshot-core"].contains(*effect), "snapshot-core is pure and may not use {effect}");
    }
}

#[test]
fn what_is_confined_stays_where_it_is() {
    for (name, text) in sources() {
        for (word, homes) in CONFINED {
            let used = text.lines().any(|line| {
                let code = line.split("//").next().unwrap_or_default();
                code.match_indices(word).any(|(at, _)| {
                    let before = code[..at].chars().next_back();
                    before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
                })
            });
            let at_home = homes.iter().any(|home| name.starts_with(home)) || name == "tests/tests/tidy.rs";
            assert!(!used || at_home, "{name} uses {word}");
        }
    }
}

/// Whatever touches the files of a VM may hang with their storage, so it goes through one module, which bounds the wait and names the
/// path.
#[test]
fn files_of_vms_are_touched_within_bounds() {
    let homes = ["hypervisor", "owned/", "watch", "folders", "qcow2", "execute", "rpc/"];
    let calls = [
        "fs::metadata(",
        "fs::symlink_metadata(",
        "fs::canonicalize(",
        "fs::read_dir(",
        "statvfs(",
        "File::open(",
        ".canonicalize()",
        ".try_exists()",
        ".symlink_metadata()",
        ".exists()",
    ];
    // What is looked at within an access of the module is part of it.
    let within = |line: &str| {
        line.contains("files::with(")
            || line.contains("std::fs::read_dir(path)")
            || line.contains("let mut device = File::open(")
    };
    // The kernel's own file systems and the programs of the host answer.
    let answers = |line: &str| {
        ["\"/sys/", "SWTPM", "of_hosts", "metadata(directory)", "fstatvfs("].iter().any(|it| line.contains(it))
    };
    for (name, text) in sources() {
        let Some(path) = name.strip_prefix("snapshot-agent/src/") else { continue };
        if !homes.iter().any(|home| path.starts_with(home)) || path.contains("tests") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//") && !within(line) && !answers(line))
        {
            let found = calls.iter().find(|call| {
                line.contains(**call) && !line.contains(&format!("files::{}", call.trim_start_matches("fs::")))
            });
            assert!(found.is_none(), "{name} touches a file without bounds: {}", line.trim());
        }
    }
}

#[test]
fn files_are_short_and_beside_their_folder() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{name} has {lines} lines, the most is {MAX_LINES}");
        assert!(!name.ends_with("/mod.rs"), "{name}: a module's file stands beside its folder");
    }
}

#[test]
fn nothing_is_left_open_or_switched_off() {
    // In pieces, so that this file does not find itself.
    let forbidden = [
        ["to", "do!("].concat(),
        ["unimplemen", "ted!("].concat(),
        ["#[ig", "nore"].concat(),
        ["FIX", "ME"].concat(),
        ["#[al", "low("].concat(),
    ];
    for (name, text) in sources() {
        for word in &forbidden {
            assert!(!text.contains(word.as_str()), "{name} has {word}");
        }
    }
}

#[test]
fn no_file_names_a_place_that_is_only_on_one_machine() {
    let forbidden = [
        ["/wo", "rk/"].concat(),
        ["/root/", ".cargo"].concat(),
        ["registry.", "npmjs"].concat(),
        ["/ho", "me/"].concat(),
    ];
    for (name, text) in files() {
        for word in &forbidden {
            assert!(!text.contains(word.as_str()), "{name} names {word}");
        }
    }
}

#[test]
fn every_rpc_has_a_file_of_its_own() {
    for (name, text) in files().into_iter().filter(|(name, _)| name.starts_with("proto/proto/ravada/snapshot/v1/")) {
        for rpc in text.lines().filter_map(|line| line.trim().strip_prefix("rpc ")) {
            let method = rpc.split('(').next().unwrap();
            let mut file = String::new();
            for (index, letter) in method.char_indices() {
                if letter.is_uppercase() && index > 0 {
                    file.push('_');
                }
                file.extend(letter.to_lowercase());
            }
            let path = format!("snapshot-api/src/rpc/{file}.rs");
            assert!(root().join(&path).is_file(), "{name}: {method} has no {path}");
        }
    }
}
