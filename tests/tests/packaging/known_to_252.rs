//! That unit files say nothing that systemd 252 (Debian 12) does not know, whichever systemd the machine of the test has. What 252
//! knows is in `systemd-252.txt`. A directive whose values are not listed here fails, so that a new one is decided about.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directives that our unit files use, and the words that 252 takes as their values.
const WORDS: &[(&str, &[&str])] = &[
    ("Service.Type", &["simple", "exec", "forking", "oneshot", "dbus", "notify", "idle"]),
    ("Service.Restart", &["no", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort", "always"]),
    ("Service.KillMode", &["control-group", "process", "mixed", "none"]),
    ("Service.ProtectSystem", &["yes", "no", "full", "strict"]),
    ("Service.ProtectHome", &["yes", "no", "read-only", "tmpfs"]),
    ("Service.ProtectProc", &["noaccess", "invisible", "ptraceable", "default"]),
    ("Service.ProcSubset", &["all", "pid"]),
    ("Service.DevicePolicy", &["auto", "closed", "strict"]),
    ("Service.KeyringMode", &["inherit", "private", "shared"]),
    ("Service.SystemCallArchitectures", &["native"]),
    ("Service.SystemCallErrorNumber", &["EPERM"]),
    ("Service.RestrictAddressFamilies", &["AF_UNIX", "AF_INET", "AF_INET6"]),
    ("Service.CapabilityBoundingSet", &["CAP_DAC_OVERRIDE", "CAP_LEASE"]),
    ("Service.AmbientCapabilities", &[]),
];

/// Those that 252 takes `yes` and `no` for, and perhaps more.
const BOOLEANS: &[&str] = &[
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "NoNewPrivileges",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateTmp",
    "PrivateUsers",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "RemoveIPC",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
];

/// Those with a text, a unit, a path, a command, a number or a time.
const FREE: &[&str] = &[
    "Install.WantedBy",
    "Service.Environment",
    "Service.ExecReload",
    "Service.ExecStart",
    "Service.ExecStartPre",
    "Service.InaccessiblePaths",
    "Service.LimitCORE",
    "Service.LimitNOFILE",
    "Service.MemoryHigh",
    "Service.MemoryMax",
    "Service.ReadWritePaths",
    "Service.RestartSec",
    "Service.StateDirectory",
    "Service.StateDirectoryMode",
    "Service.TasksMax",
    "Service.TimeoutStartSec",
    "Service.TimeoutStopSec",
    "Service.UMask",
    "Service.User",
    "Service.WatchdogSec",
    "Unit.After",
    "Unit.Description",
    "Unit.RequiresMountsFor",
    "Unit.StartLimitIntervalSec",
    "Unit.Wants",
];

fn known() -> BTreeSet<&'static str> {
    include_str!("systemd-252.txt").lines().filter(|line| !line.starts_with('#')).collect()
}

/// Everything in a unit file that 252 does not know, or that this test has not been told about.
fn unknown(text: &str) -> Vec<String> {
    let (known, mut section, mut found) = (known(), "", Vec::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            continue;
        }
        let is_known = !line.ends_with('\\')
            && line.split_once('=').is_some_and(|(directive, value)| {
                let name = format!("{section}.{directive}");
                known.contains(name.as_str()) && takes(&known, &name, directive, value)
            });
        if !is_known {
            found.push(line.to_owned());
        }
    }
    found
}

fn takes(known: &BTreeSet<&str>, name: &str, directive: &str, value: &str) -> bool {
    // Specifiers came one by one.
    if value.contains('%') {
        return false;
    }
    if name == "Service.SystemCallFilter" {
        let calls = value.trim_start_matches('~');
        return calls.split_whitespace().all(|call| known.contains(call));
    }
    if let Some((_, words)) = WORDS.iter().find(|(it, _)| *it == name) {
        return value.split_whitespace().all(|word| words.contains(&word));
    }
    FREE.contains(&name) || (BOOLEANS.contains(&directive) && ["yes", "no"].contains(&value))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The unit files and drop-ins that git knows or would take.
fn unit_files() -> Vec<String> {
    let mut command = Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let listed = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let is_unit = |name: &&str| {
        let kinds = [".service", ".socket", ".timer", ".path", ".mount", ".slice", ".target", ".service.d.conf"];
        kinds.iter().any(|kind| name.ends_with(kind)) || (name.contains(".service.d/") && name.ends_with(".conf"))
    };
    listed.lines().filter(is_unit).map(str::to_owned).collect()
}

#[test]
fn no_unit_file_says_what_systemd_252_does_not_know() {
    let files = unit_files();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let said = unknown(&fs::read_to_string(root().join(&file)).unwrap());
        assert_eq!(
            said, [""; 0],
            "{file}: systemd 252 does not know this, or tests/tests/packaging/known_to_252.rs does not"
        );
    }
}

#[test]
fn what_came_after_252_is_found() {
    // Since 253, 254, 255, 256 and 257.
    let newer = [
        "SystemCallFilter=@system-service @sandbox",
        "SystemCallFilter=~@privileged @sandbox",
        "SystemCallFilter=@system-service a_call_of_tomorrow",
        "Type=notify-reload",
        "RestartSteps=5",
        "RestartMode=direct",
        "MemoryPressureWatch=on",
        "ProtectSystem=sometimes",
        "PrivateTmp=disconnected",
        "ProtectControlGroups=strict",
        "PrivateUsers=full",
        "ExecStart=/usr/bin/snapshot-agent --config %D/agent.toml",
        "ProtectClock=yes \\",
        "no assignment",
    ];
    for line in newer {
        assert_eq!(unknown(&format!("[Service]\n# A comment.\nType=notify\n{line}\n")), [line.trim()]);
    }
    assert_eq!(unknown("[Unit]\nSurviveFinalKillSignal=yes\n"), ["SurviveFinalKillSignal=yes"]);
    assert_eq!(unknown("[Sandbox]\nType=notify\n"), ["Type=notify"]);
}

#[test]
fn the_users_of_the_packages_are_written_as_252_understands_it() {
    let folder = root().join("packaging/sysusers.d");
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            // `u!` came with 257.
            assert!(["g", "u", "m", "r"].contains(&line.split_whitespace().next().unwrap()), "{line}");
        }
    }
}
