//! The units by which a service manager starts the three programs.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

mod known_to_252;
mod origins;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use snapshot_agent::config::Config;
use snapshot_agent::reach::{Capability, List, May};
use tests::tools::binary;

const UNITS: [&str; 3] = ["snapshot-agent", "snapshot-api", "snapshot-gateway"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn unit(name: &str) -> PathBuf {
    root().join(format!("packaging/systemd/{name}.service"))
}

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    Command::new("systemd-analyze").args(arguments).arg(unit).env("LC_ALL", "C").output().unwrap()
}

/// All values of a setting, in the order in which they stand.
fn values(unit: &Path, setting: &str) -> Vec<String> {
    let text = fs::read_to_string(unit).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    lines.flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn no_unit_is_exposed_by_more_than_two_and_a_half() {
    for name in UNITS {
        let output = analyze(&["security", "--offline=yes", "--no-pager", "--threshold=25"], &unit(name));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
    // The same judge finds a bare unit wanting.
    let bare = tempfile::tempdir().unwrap();
    let bare = bare.path().join("bare.service");
    fs::create_dir_all(bare.parent().unwrap()).unwrap();
    fs::write(&bare, "[Service]\nExecStart=/usr/bin/snapshot-agent\n").unwrap();
    assert!(!analyze(&["security", "--offline=yes", "--no-pager", "--threshold=25"], &bare).status.success());
}

#[test]
fn services_towards_strangers_have_a_memory_limit() {
    for name in ["snapshot-api", "snapshot-gateway"] {
        for setting in ["MemoryHigh", "MemoryMax"] {
            assert_eq!(values(&unit(name), setting).len(), 1, "{name}: {setting}");
        }
    }
}

#[test]
fn the_service_manager_understands_every_line() {
    for name in UNITS {
        let said = analyze(&["verify", "--man=no"], &unit(name)).stderr;
        let said = String::from_utf8_lossy(&said).into_owned();
        // The programs are not installed where this is tested; and other units of the machine may be told of.
        let ours = said.lines().filter(|line| line.contains(name) && !line.contains("is not executable"));
        assert_eq!(ours.collect::<Vec<_>>(), [""; 0], "{said}");
    }
}

#[test]
fn the_programs_understand_how_they_are_started() {
    for name in UNITS {
        let start = values(&unit(name), "ExecStart");
        let run = |arguments: &[String]| Command::new(binary(name).unwrap()).args(arguments).output().unwrap();
        let with_help = [&start[1..], &["--help".to_owned()]].concat();
        assert!(run(&with_help).status.success(), "{start:?}");
        // Help is not given to whoever says something that is not understood.
        assert!(!run(&[&["--configuration".to_owned()], &with_help[..]].concat()).status.success());
    }
}

/// A bare system has no `kill` but the shell's own.
#[test]
fn the_packages_bring_what_their_units_start() {
    for (name, part) in [("snapshot-agent", "agent"), ("snapshot-api", "api"), ("snapshot-gateway", "gateway")] {
        let control = fs::read_to_string(root().join(format!("packaging/debian/control.{part}"))).unwrap();
        let depends = control.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap();
        let depends: Vec<&str> = depends.split(", ").map(|it| it.split(' ').next().unwrap()).collect();
        let text = fs::read_to_string(unit(name)).unwrap();
        let started =
            text.lines().filter_map(|line| line.strip_prefix("Exec")?.split_once('=')).map(|(_, command)| command);
        let programs: BTreeSet<&str> = started.map(|command| command.split_whitespace().next().unwrap()).collect();
        let own = format!("/usr/bin/{name}");
        for program in programs.into_iter().filter(|program| *program != own) {
            // Another program needs its package here.
            let packages = [("/bin/kill", "procps")];
            let package = packages.iter().find(|(it, _)| *it == program).map(|(_, package)| *package);
            assert!(package.is_some_and(|package| depends.contains(&package)), "{name}: {program} is of {package:?}");
        }
    }
}

#[test]
fn the_agents_unit_lets_it_have_what_its_own_list_has() {
    let (unit, config) = (unit("snapshot-agent"), Config::load(&root().join("examples/agent.toml")).unwrap());
    let list = List::of(&config);
    let named = |capability: &Capability| match capability {
        Capability::DacOverride => "CAP_DAC_OVERRIDE",
        Capability::Lease => "CAP_LEASE",
        Capability::NetBindService => "CAP_NET_BIND_SERVICE",
    };
    let kept: BTreeSet<String> = list.capabilities.iter().map(|it| named(it).to_owned()).collect();
    assert_eq!(values(&unit, "CapabilityBoundingSet").into_iter().collect::<BTreeSet<_>>(), kept);
    let images = list.places.iter().filter(|place| place.may == May::Images);
    let images: Vec<String> = images.map(|place| place.path.display().to_string()).collect();
    assert_eq!(values(&unit, "ReadWritePaths"), images);
    let state = format!("/var/lib/{}", values(&unit, "StateDirectory").concat());
    assert_eq!(Path::new(&state), config.state_dir);
    for hidden in ["InaccessiblePaths", "TemporaryFileSystem"].into_iter().flat_map(|setting| values(&unit, setting)) {
        let hidden = Path::new(hidden.trim_start_matches('-'));
        assert!(list.places.iter().all(|place| !place.path.starts_with(hidden)), "{}", hidden.display());
    }
}
