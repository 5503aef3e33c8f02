//! Merging the files of a disk.
//!
//! Where QEMU has them open, it merges them itself, by a block job of libvirt's; and the machine goes on with the base.
//! Where it has not, `qemu-img` does, and whoever used the top is sent to the base afterwards. What is seen through the top
//! is the same before, during and after it, so both can be ended and begun again.

use std::ffi::CString;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use snapshot_core::layers::{Layers, Merge};
use snapshot_core::vm::VmFacts;
use snapshot_core::{Error, Reason};
use virt::domain::Domain;
use virt_sys as sys;

use super::super::{Failure, GUARDED, Watch, snapshot_write};
use super::action::{full_xml, redefine};
use super::files::is_same;
use super::link::{Connection, Link};
use super::volumes;
use crate::beneath::Beneath;
use crate::qemu_img;

/// How often a merge is asked how far it is: at first, for most are short, and later.
const ASK_AFTER: Duration = Duration::from_millis(2);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long a machine is waited for to go on with the base.
const PIVOT_WITHIN: Duration = Duration::from_secs(60);

fn spelled<'a>(layers: &'a Layers, path: &'a str) -> &'a str {
    layers.files.get(path).map_or(path, |layer| layer.spelled.as_str())
}

fn format<'a>(layers: &'a Layers, path: &str) -> &'a str {
    layers.files.get(path).map_or("qcow2", |layer| layer.format.as_str())
}

fn cancelled() -> Failure {
    Failure::Precondition(Error::new(Reason::Cancelled, "stopped on request"))
}

/// Whether the disk runs on a chain with this file in it.
fn runs_on(vm: &VmFacts, layers: &Layers, merge: &Merge) -> bool {
    let live = layers.live.get(&merge.disk);
    vm.is_active() && live.is_some_and(|live| layers.chain(live).any(|path| path == merge.top))
}

pub(super) fn commit(
    (actions, looks): (&Link, &Link),
    folders: &Beneath,
    vm: &VmFacts,
    layers: &Layers,
    merge: &Merge,
    watch: &dyn Watch,
) -> Result<(), Failure> {
    if !runs_on(vm, layers, merge) {
        return commit_files(folders, layers, merge, watch);
    }
    // QEMU has them open already. What it is not known to be, it does not get written.
    for path in [&merge.top, &merge.base] {
        folders.image(Path::new(path), Path::new(&format!("{path}{GUARDED}")))?;
    }
    let is_active_layer = layers.live.get(&merge.disk) == Some(&merge.top);
    let base = spelled(layers, &merge.base);
    let top = (!is_active_layer).then(|| spelled(layers, &merge.top));
    let job = |connection: &Connection| job(connection, vm, &merge.disk);
    // One that was begun before a daemon or an agent died goes on.
    if looks.look("block_job", job)?.is_none() {
        actions.act("commit", |connection| begin(connection, vm, &merge.disk, base, top))?;
    }
    let mut pauses = Pauses::default();
    while let Some((done, of)) = looks.look("block_job", job)? {
        watch.progress(done, of);
        if is_active_layer && of > 0 && done == of {
            return actions.act("pivot", |connection| pivot(connection, vm, &merge.disk));
        }
        if watch.is_cancelled() {
            actions.act("abort", |connection| abort(connection, vm, &merge.disk, 0))?;
            return Err(cancelled());
        }
        pauses.pause();
    }
    if is_active_layer {
        return Err(Failure::Unintelligible("the block job ended before the machine went on with the base".to_owned()));
    }
    Ok(())
}

fn text(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::Unintelligible(format!("a zero byte in {text:?}")))
}

fn begin(connection: &Connection, vm: &VmFacts, disk: &str, base: &str, top: Option<&str>) -> Result<(), Failure> {
    let domain = connection.domain(vm.id)?;
    let (disk, base, named) = (text(disk)?, text(base)?, top.map(text).transpose()?);
    let flags = if top.is_none() { sys::VIR_DOMAIN_BLOCK_COMMIT_ACTIVE } else { 0 };
    let top = named.as_ref().map_or(std::ptr::null(), |top| top.as_ptr());
    // SAFETY: the domain is valid as long as the reference, and the strings outlive the call; no top means the active file.
    if unsafe { sys::virDomainBlockCommit(domain.as_ptr(), disk.as_ptr(), base.as_ptr(), top, 0, flags) } < 0 {
        return Err(virt::error::Error::last_error().into());
    }
    Ok(())
}

/// How far the disk's block job is; `None` when there is none.
fn job(connection: &Connection, vm: &VmFacts, disk: &str) -> Result<Option<(u64, u64)>, Failure> {
    let domain = connection.domain(vm.id)?;
    let disk = text(disk)?;
    let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
    // SAFETY: the domain is valid as long as the reference, and the string and the place outlive the call.
    match unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) } {
        0 => Ok(None),
        1 => Ok(Some((info.cur, info.end))),
        _ => Err(virt::error::Error::last_error().into()),
    }
}

/// Has the machine go on with the base. libvirt refuses as long as the two differ.
fn pivot(connection: &Connection, vm: &VmFacts, disk: &str) -> Result<(), Failure> {
    let (since, mut pauses) = (Instant::now(), Pauses::default());
    loop {
        match abort(connection, vm, disk, sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT) {
            Err(Failure::Refused { code, .. })
                if code == sys::VIR_ERR_BLOCK_COPY_ACTIVE && since.elapsed() < PIVOT_WITHIN =>
            {
                pauses.pause();
            }
            result => return result,
        }
    }
}

fn abort(connection: &Connection, vm: &VmFacts, disk: &str, flags: u32) -> Result<(), Failure> {
    let domain = connection.domain(vm.id)?;
    let disk = text(disk)?;
    // SAFETY: the domain is valid as long as the reference, and the string outlives the call.
    if unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), flags) } < 0 {
        return Err(virt::error::Error::last_error().into());
    }
    Ok(())
}

pub(super) fn commit_files(
    folders: &Beneath,
    layers: &Layers,
    merge: &Merge,
    watch: &dyn Watch,
) -> Result<(), Failure> {
    let mut command = qemu_img::command();
    command.args(["commit", "-p", "-d", "-f", format(layers, &merge.top), "-b", spelled(layers, &merge.base)]);
    command.arg("--").arg(&merge.top);
    let write = [merge.top.as_str(), merge.base.as_str()];
    // Where libvirt does not know of the top, what it lies on is known by the base alone.
    let chain = layers.chain(&merge.top).chain(layers.chain(&merge.base));
    let read: Vec<&str> = chain.filter(|path| !write.contains(path)).collect();
    run(folders, command, (&write, &read), merge.bytes, watch)
}

/// Runs it to its end, or ends it when it is told to.
fn run(
    folders: &Beneath,
    mut command: Command,
    (write, read): (&[&str], &[&str]),
    bytes: u64,
    watch: &dyn Watch,
) -> Result<(), Failure> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = qemu_img::spawn(folders, command, write, read)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, words) = thread::scope(|scope| {
        scope.spawn(|| stdout.into_iter().for_each(|stdout| tell_progress(stdout, bytes, watch)));
        let words = scope.spawn(|| {
            let mut words = String::new();
            stderr.into_iter().for_each(|mut stderr| drop(stderr.read_to_string(&mut words)));
            words
        });
        let mut pauses = Pauses::default();
        let status = loop {
            match child.try_wait() {
                Ok(None) if watch.is_cancelled() => {
                    let _ = child.kill();
                    drop(child.wait());
                    break Ok(None);
                }
                Ok(None) => pauses.pause(),
                Ok(Some(status)) => break Ok(Some(status)),
                Err(error) => break Err(error),
            }
        };
        (status, words.join().unwrap_or_default())
    });
    match status? {
        Some(status) if status.success() => Ok(()),
        Some(_) => Err(Failure::Unintelligible(format!("qemu-img: {}", words.trim()))),
        None => Err(cancelled()),
    }
}

/// Reads what `-p` prints: `    (12.50/100%)`, over and over.
fn tell_progress(mut stdout: impl Read, bytes: u64, watch: &dyn Watch) {
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = stdout.read(&mut buffer) {
        let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
        let percent =
            text.rsplit('(').next().and_then(|rest| rest.split('.').next()).and_then(|n| n.parse::<u64>().ok());
        if let Some(percent) = percent.filter(|percent| *percent <= 100) {
            watch.progress(bytes / 100 * percent, bytes);
        }
    }
}

/// Sends everybody who uses the top to the base: images that lie on it, the definition of the machine, snapshots.
pub(super) fn redirect(
    connection: &Connection,
    folders: &Beneath,
    vm: &VmFacts,
    layers: &Layers,
    merge: &Merge,
) -> Result<(), Failure> {
    let domain = connection.domain(vm.id)?;
    let base = (spelled(layers, &merge.base), format(layers, &merge.base));
    for (path, layer) in layers.files.iter().filter(|(_, layer)| layer.backing.as_ref() == Some(&merge.top)) {
        let mut command = qemu_img::command();
        command.args(["rebase", "-u", "-f", &layer.format, "-F", base.1, "-b", base.0, "--"]).arg(path);
        run(folders, command, (&[path.as_str()], &[]), 0, &Nobody)?;
    }
    if !vm.is_active() && layers.live.get(&merge.disk) == Some(&merge.top) {
        redefine_disk(connection, &domain, merge, base)?;
    }
    for (id, parts) in &layers.snapshots {
        let uses_top = parts.frozen.values().any(|path| *path == merge.top);
        let is_elsewhere = parts.overlays.iter().any(|(target, path)| layers.live.get(target) != Some(path));
        if parts.is_current && is_elsewhere && !uses_top {
            // What libvirt keeps of it beside this would be lost; a revert takes care of it.
            continue;
        }
        if parts.deleted && !uses_top && !parts.overlays.values().any(|path| *path == merge.top) {
            // Nobody goes back to it, so nobody follows the chains that it has.
            continue;
        }
        let snapshot = Domain::lookup_snapshot_by_name(&domain, id.as_str(), 0)?;
        let before = full_xml(&snapshot)?;
        let mut xml = snapshot_write::without_chains(&before)?;
        for top in spellings(&xml, &merge.top)? {
            xml = snapshot_write::with_source(&xml, &top, base.0, base.1)?;
        }
        if xml != before {
            redefine(&domain, &snapshot, &xml)?;
        }
    }
    // The next start would look for the files that were merged.
    let flags = sys::VIR_DOMAIN_XML_SECURE | sys::VIR_DOMAIN_XML_INACTIVE;
    let before = domain.xml_desc(flags)?;
    let after = snapshot_write::without_chains(&before)?;
    if after != before && vm.persistent {
        connection.connect().define_domain_xml(&after)?;
    }
    Ok(())
}

/// The next start uses the base. A machine that somebody started meanwhile runs on the top, and has to go on so.
fn redefine_disk(
    connection: &Connection,
    domain: &Domain,
    merge: &Merge,
    (base, format): (&str, &str),
) -> Result<(), Failure> {
    let flags = sys::VIR_DOMAIN_XML_SECURE | sys::VIR_DOMAIN_XML_INACTIVE;
    let before = domain.xml_desc(flags)?;
    let mut after = before.clone();
    for top in volumes::parse(domain, &before)?.files().into_iter().filter(|(path, _)| is_same(path, &merge.top)) {
        after = snapshot_write::with_source(&after, &top.0.to_string_lossy(), base, format)?;
    }
    if domain.is_active()? {
        return Err(Failure::Unintelligible("the machine was started while its files were merged".to_owned()));
    }
    connection.connect().define_domain_xml(&after)?;
    if domain.is_active()?
        && volumes::parse(domain, &domain.xml_desc(0)?)?.files().iter().any(|(path, _)| is_same(path, &merge.top))
    {
        connection.connect().define_domain_xml(&before)?;
        return Err(Failure::Unintelligible("the machine was started while its files were merged".to_owned()));
    }
    Ok(())
}

/// How a snapshot spells this file: in its two definitions it may differ.
fn spellings(xml: &str, name: &str) -> Result<Vec<String>, Failure> {
    let frozen = super::super::snapshot_xml::parse(xml)?.files.frozen;
    let mut found: Vec<String> = frozen
        .into_values()
        .filter(|(path, _)| is_same(path, name))
        .map(|(path, _)| path.to_string_lossy().into_owned())
        .collect();
    if !found.iter().any(|spelled| Path::new(spelled) == Path::new(name)) {
        found.push(name.to_owned());
    }
    Ok(found)
}

/// Pauses between questions: the longer it takes, the longer they are.
#[derive(Default)]
struct Pauses {
    last: Duration,
}

impl Pauses {
    fn pause(&mut self) {
        self.last = (self.last * 2).clamp(ASK_AFTER, ASK_EVERY);
        thread::sleep(self.last);
    }
}

/// For what takes no time.
pub(super) struct Nobody;

impl Watch for Nobody {
    fn progress(&self, _: u64, _: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
