//! `snapshot-agent doctor`: what is wrong with the agent on this machine, and what to do about it.
//!
//! It reads what the agent reads and asks libvirt for its versions, and changes nothing. The agent may run meanwhile or not.
//! Run it as root, as the agent is: what it may not see it would find broken.

use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use capability::Verifier;
use doctor::{Finding, Report, clock};

use crate::bounded::{files, jobs};
use crate::clock::unix_now;
use crate::config::Config;
use crate::hypervisor::libvirt::Libvirt;
use crate::hypervisor::{Failure, Hypervisor as _, Reread, Versions};
use crate::owned::orphans::on_record_in;
use crate::shared_storage::{SharedStorage, Standing};

/// How long libvirt may take to tell its versions.
const ANSWER: Duration = Duration::from_secs(15);
/// Before it, libvirt can neither revert to external snapshots nor delete them.
const OLDEST_LIBVIRT: (u32, u32) = (9, 9);
const LIBVIRT: &str = "libvirt";
const VMS: &str = "VMs";
const ORPHANS: &str = "orphans";
const EMBEDDED: &str = "qemu:///embed";

/// Examines and tells: 0, or 1 when something is broken.
pub fn run(path: &Path, json: bool) -> ExitCode {
    let mut report = Report::default();
    let subject = path.display().to_string();
    match Config::load(path) {
        Ok(config) => {
            report.add([Finding::ok("configuration", subject, "can be used")]);
            examine(&config, &mut report);
        }
        Err(error) => {
            let remedy = "correct it; examples/agent.toml has every key";
            report.add([Finding::fail("configuration", subject, error.to_string(), remedy)]);
        }
    }
    report.add(clock::kept());
    report.end(json)
}

fn examine(config: &Config, report: &mut Report) {
    report.add(mtls::examine::mutual(&config.tls, &format!("agent/{}", config.host), unix_now()));
    report.add([match Verifier::load(config.issuers.clone()) {
        Ok(_) => Finding::ok("issuers", "", format!("the keys of {} can be read", config.issuers.len())),
        Err(error) => {
            let remedy = "copy the key set (*.jwks.json) from where the issuer is; correct [[issuers]]";
            Finding::fail("issuers", "", error.to_string(), remedy)
        }
    }]);
    let found = libvirt(&config.libvirt_uri);
    let is_there = found.level != doctor::Level::Fail;
    report.add([found]);
    for folder in &config.image_dirs {
        report.add(within_bounds("image folder", folder, |folder| doctor::folder("image folder", folder)));
    }
    let directories = config.shared_dirs.iter().filter(|dir| !config.image_dirs.contains(dir));
    report.add(config.image_dirs.iter().chain(directories).flat_map(|directory| shared(config, directory)));
    for folder in &config.read_dirs {
        report.add(within_bounds("folder of bases", folder, |folder| {
            vec![doctor::readable_folder("folder of bases", folder)]
        }));
    }
    if is_there && !config.libvirt_uri.starts_with(EMBEDDED) {
        report.add(storage_of_vms(&config.libvirt_uri));
    }
    report.add(doctor::folder("state folder", &config.state_dir));
    report.add([orphans(&config.owned_dir())]);
    report.add([match config.snapshot_dir() {
        Some(folder) => doctor::readable_folder("libvirt's records", &folder),
        None => Finding::warn(
            "libvirt's records",
            "",
            "where they are is not known, so other tools' snapshots are seen only every scan_seconds",
            "set snapshot_dir",
        ),
    }]);
}

/// A check of a directory whose storage may not respond.
fn within_bounds(
    check: &'static str,
    directory: &Path,
    examine: impl FnOnce(&Path) -> Vec<Finding> + Send + 'static,
) -> Vec<Finding> {
    let (subject, path) = (directory.display().to_string(), directory.to_owned());
    let found = jobs::run(&subject, move || files::with(&path, || Ok(examine(&path))));
    match found {
        Ok(Ok(findings)) => findings,
        Ok(Err(_)) | Err(_) => vec![Finding::fail(
            check,
            subject,
            "its storage does not respond",
            "look at its file server or its disk; the agent goes on without it, and uses it again when it responds",
        )],
    }
}

const SHARED: &str = "shared storage";

/// Whether other hosts use an image directory, as far as it can be told.
fn shared(config: &Config, directory: &Path) -> Vec<Finding> {
    let (host, state, dirs) = (config.host.clone(), config.state_dir.clone(), config.shared_dirs.clone());
    within_bounds(SHARED, directory, move |directory| {
        let subject = directory.display().to_string();
        let examine = || {
            let storage = SharedStorage::to_examine(host, &state, &dirs)?;
            Ok::<_, std::io::Error>((storage.standing(&files::resolved(directory))?, storage))
        };
        let found = match examine() {
            Ok((Standing::Local, _)) => return Vec::new(),
            Ok((Standing::Unknown, _)) => Finding::warn(
                SHARED,
                subject,
                "is on a file system that other hosts may use: external snapshots are refused",
                "list it in shared_dirs of agent.toml on every host that uses it",
            ),
            Ok((Standing::Shared, storage)) => return others(&storage, subject, &files::resolved(directory)),
            Err(error) => Finding::fail(SHARED, subject, error.to_string(), "make it readable for root"),
        };
        vec![found]
    })
}

/// The other hosts that use a directory, and those whose agents do not say what they use.
fn others(storage: &SharedStorage, subject: String, directory: &Path) -> Vec<Finding> {
    let found = storage.others(directory).and_then(|hosts| Ok((hosts, storage.long_silent(directory)?)));
    let (hosts, silent) = match found {
        Ok(found) => found,
        Err(error) => return vec![Finding::fail(SHARED, subject, error.message(), "repair the note that is named")],
    };
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let seen = match hosts.is_empty() {
        true => "no other host has a note here".to_owned(),
        false => format!("used by {} as well", hosts.join(", ")),
    };
    let silent = silent.into_iter().map(|(host, seconds)| {
        let seen = format!("the agent of host {host} has not said for {seconds} s what it uses: nothing is removed here");
        let remedy = format!(
            "start that agent, or, if the host will never be used again, remove .ravada-snapshots/{host}.* there and in the directories below"
        );
        Finding::warn(SHARED, subject.clone(), seen, remedy)
    });
    [Finding::ok(SHARED, subject.clone(), seen)].into_iter().chain(silent).collect()
}

/// Files that hold a state and that nothing uses any more: nobody but an administrator deletes one.
fn orphans(records: &Path) -> Finding {
    let owned = records.to_owned();
    let subject = records.display().to_string();
    match jobs::run(ORPHANS, move || on_record_in(&owned)) {
        Ok(Ok((0, _))) => Finding::ok(ORPHANS, "", "none"),
        Ok(Ok((count, bytes))) => {
            let remedy = "look at them (snapctl orphans), and delete those that nobody needs (snapctl delete-orphan)";
            let seen = format!("{count} files that nothing uses any more take {} MiB", bytes >> 20);
            Finding::warn(ORPHANS, "", seen, remedy)
        }
        Ok(Err(error)) => {
            Finding::warn(ORPHANS, subject, format!("the records cannot be read: {error}"), "run it as root")
        }
        Err(_) => Finding::warn(ORPHANS, subject, "storage does not respond", "look at the file server or the disk"),
    }
}

/// Whether each VM's images can be read, and libvirt answers for each VM.
fn storage_of_vms(uri: &str) -> Vec<Finding> {
    let remedy = "repair the storage or the QEMU process that is named; other VMs are not affected";
    let listed = Libvirt::new(uri).and_then(|libvirt| libvirt.vms().map(|vms| (libvirt, vms)));
    let Ok((libvirt, vms)) = listed else {
        return vec![Finding::fail(VMS, "", "libvirt does not list the VMs", "look at libvirt's log")];
    };
    let unresponsive = vms.iter().filter_map(|vm| match libvirt.observe(*vm, Reread::New) {
        Err(Failure::Unresponsive(found)) => {
            let name = found.known.map_or_else(|| vm.to_string(), |(name, _)| name);
            Some(Finding::fail(VMS, name, found.restriction.message, remedy))
        }
        // What else is wrong with a VM is told by the API.
        _ => None,
    });
    let unresponsive: Vec<Finding> = unresponsive.collect();
    if unresponsive.is_empty() { vec![Finding::ok(VMS, "", format!("{} respond", vms.len()))] } else { unresponsive }
}

fn libvirt(uri: &str) -> Finding {
    if uri.starts_with(EMBEDDED) {
        return Finding::ok(LIBVIRT, uri, "runs inside the agent, which alone can open it: not looked at");
    }
    // libvirt may hang, and has no deadline of its own. The thread ends with the process.
    let (tell, told) = mpsc::channel();
    let asked = uri.to_owned();
    std::thread::spawn(move || tell.send(versions(&asked)));
    let remedy = "start it (systemctl status virtqemud.service libvirtd.service), or correct libvirt_uri; the agent \
                  connects by itself when it is there";
    match told.recv_timeout(ANSWER) {
        Ok(Ok(found)) => judge(uri, &found),
        Ok(Err(error)) => Finding::fail(LIBVIRT, uri, format!("cannot be reached: {}", error), remedy),
        Err(_) => Finding::fail(LIBVIRT, uri, format!("does not answer in {} s", ANSWER.as_secs()), remedy),
    }
}

fn versions(uri: &str) -> Result<Versions, Failure> {
    Libvirt::new(uri)?.versions()
}

fn judge(uri: &str, found: &Versions) -> Finding {
    let seen = format!("libvirt {}, QEMU {}", found.libvirt, found.qemu);
    let mut numbers = found.libvirt.split('.').map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST_LIBVIRT {
        let remedy = "on Debian 12 install libvirt and QEMU from bookworm-backports; external snapshots need it";
        return Finding::warn(LIBVIRT, uri, format!("{seen}: older than 9.9"), remedy);
    }
    Finding::ok(LIBVIRT, uri, seen)
}

#[cfg(test)]
mod tests {
    use ::doctor::Level;

    use super::*;

    #[test]
    fn an_old_libvirt_is_told_of() {
        let of = |libvirt: &str| judge("", &Versions { libvirt: libvirt.to_owned(), qemu: "7.2.0".to_owned() }).level;
        assert_eq!((of("9.0.0"), of("9.9.0"), of("11.3.0")), (Level::Warn, Level::Ok, Level::Ok));
    }

    #[test]
    fn a_libvirt_that_is_not_there_is_broken() {
        let uri = "qemu:///system?socket=/nonexistent/libvirt-sock";
        let finding = libvirt(uri);
        assert_eq!((finding.level, finding.subject.as_str()), (Level::Fail, uri));
        assert!(finding.remedy.contains("systemctl"), "{finding:?}");
    }
}
