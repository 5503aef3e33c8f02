//! External snapshots: taking them and going back to them.

use std::ffi::CString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::layers::{Layers, Parts};
use snapshot_core::plan::PowerState;
use snapshot_core::vm::{VmFacts, VmState};
use snapshot_core::{Error, Reason};
use virt_sys as sys;

use super::super::{Failure, NewExternal, Watch, domain_xml, snapshot_write, snapshot_xml};
use super::action::{full_xml, redefine, revert_internal, snapshot};
use super::files::is_same;
use super::freeze::Frozen;
use super::link::{Connection, Link};
use crate::beneath::Beneath;
use crate::bounded;
use crate::bounded::files::resolved;

/// How often a long call is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How long a guest's memory may take to be saved. One that writes faster than the disk does would never end.
const SAVED_WITHIN: Duration = Duration::from_secs(15 * 60);
/// How long the first question how far it is waits for its answer before it is asked again, and how many may wait.
const FIRST_PATIENCE: Duration = Duration::from_millis(100);
const QUESTIONS: u32 = 3;
/// libvirt names the overlay of a revert after the second it is made in.
const ONE_NAME: Duration = Duration::from_millis(1100);

/// Takes an external snapshot: freeze, create, thaw. While the memory is saved, another thread tells how far it is and ends
/// it when it is told to.
pub(super) fn create(
    actions: &Link,
    looks: &Link,
    folders: &Beneath,
    vm: &VmFacts,
    new: &NewExternal<'_>,
    watch: &dyn Watch,
) -> Result<(), Failure> {
    check_targets(folders, new)?;
    let xml = snapshot_write::create_external(new, vm)?;
    let mut flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
    if new.memory_file.is_none() {
        flags |= sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY;
    } else if vm.state == VmState::Running {
        flags |= sys::VIR_DOMAIN_SNAPSHOT_CREATE_LIVE;
    }
    let take = || {
        let (done, since) = (AtomicBool::new(false), Instant::now());
        thread::scope(|scope| {
            if new.memory_file.is_some() {
                scope.spawn(|| follow_saving(looks, vm.id, watch, &done, since));
            }
            let created = actions.act("create_external", |connection| {
                let domain = connection.domain(vm.id)?;
                domain.create_snapshot_xml(&xml, flags)?;
                Ok(())
            });
            done.store(true, Ordering::Release);
            created
        })
    };
    if new.quiesce { Frozen::begin(actions, looks, vm.id)?.during(take) } else { take() }
}

/// libvirt writes over a running state that exists, without a word, and follows a link to one that may be elsewhere. It
/// opens them itself, as root and by these names: between this look and that, who may write in the folder can still put
/// something there.
fn check_targets(folders: &Beneath, new: &NewExternal<'_>) -> Result<(), Failure> {
    let targets = new.overlays.values().map(String::as_str).chain(new.memory_file);
    for path in targets {
        if folders.find(&resolved(Path::new(path)))?.is_some()
            || bounded::files::symlink_metadata(Path::new(path)).is_ok()
        {
            let message = format!("{path} exists");
            return Err(Failure::Precondition(Error::new(Reason::TargetExists, message).with("path", path)));
        }
    }
    Ok(())
}

/// Tells how far the memory is saved until it is, and ends it when it is told to.
///
/// libvirt answers only while the memory itself is saved. Who asks before that waits until everything is over, because
/// nobody wakes him (seen with 11.3), and who asks after him is answered at once. So a question that stays without an
/// answer is asked again, by another thread, and each time it is waited longer before that.
fn follow_saving(looks: &Link, vm: VmId, watch: &dyn Watch, done: &AtomicBool, since: Instant) {
    let (answer, answers) = channel();
    thread::scope(|scope| {
        let (mut waiting, mut patience) = (0, FIRST_PATIENCE);
        while !done.load(Ordering::Acquire) {
            let end = watch.is_cancelled() || since.elapsed() > SAVED_WITHIN;
            if waiting < QUESTIONS {
                let answer = answer.clone();
                scope.spawn(move || answer.send(looks.look("job", |connection| saving(connection, vm, end))));
                waiting += 1;
            }
            match answers.recv_timeout(patience) {
                Ok(told) => {
                    waiting -= 1;
                    if let Ok(Some((saved, of))) = told {
                        watch.progress(saved, of);
                    }
                    thread::sleep(ASK_EVERY);
                }
                Err(_) => patience *= 4,
            }
        }
    });
}

/// How far the memory is saved, in bytes; ends it where it is to end.
fn saving(connection: &Connection, vm: VmId, end: bool) -> Result<Option<(u64, u64)>, Failure> {
    let Some(told) = job(connection, vm)? else { return Ok(None) };
    let domain = connection.domain(vm)?;
    // SAFETY: the domain is valid as long as the reference.
    if end && unsafe { sys::virDomainAbortJob(domain.as_ptr()) } < 0 {
        return Err(virt::error::Error::last_error().into());
    }
    Ok(Some(told))
}

/// Whether libvirt is at work on a machine. While it takes it back no job is to be seen, and nobody else is let at it.
pub(super) fn is_busy(connection: &Connection, vm: VmId) -> Result<bool, Failure> {
    if job(connection, vm)?.is_some() {
        return Ok(true);
    }
    let domain = connection.domain(vm)?;
    let xml = domain_xml::parse(&domain.xml_desc(0)?)?;
    let Some(disk) = xml.disks().find_map(|disk| CString::new(disk.target).ok()) else { return Ok(false) };
    let mut info = sys::virDomainBlockInfo { capacity: 0, allocation: 0, physical: 0 };
    // SAFETY: the domain is valid as long as the reference, and the string and the place outlive the call.
    if unsafe { sys::virDomainGetBlockInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) } == 0 {
        return Ok(false);
    }
    let error = virt::error::Error::last_error();
    if error.code().to_raw() == sys::VIR_ERR_OPERATION_TIMEOUT {
        return Ok(true);
    }
    match error.into() {
        failure @ Failure::Unreachable(_) => Err(failure),
        // The image cannot be looked into, which it could not be asked while libvirt is at work.
        _ => Ok(false),
    }
}

/// How far libvirt is with what it is at on the machine, in bytes; `None` when it is at nothing that takes long.
pub(super) fn job(connection: &Connection, vm: VmId) -> Result<Option<(u64, u64)>, Failure> {
    let domain = connection.domain(vm)?;
    // SAFETY: a structure of numbers, for which zero is a value.
    let mut info: sys::virDomainJobInfo = unsafe { std::mem::zeroed() };
    // SAFETY: the domain is valid as long as the reference, and the place outlives the call.
    if unsafe { sys::virDomainGetJobInfo(domain.as_ptr(), &mut info) } < 0 {
        return Err(virt::error::Error::last_error().into());
    }
    let kind = u32::try_from(info.type_).unwrap_or_default();
    let is_job = matches!(kind, sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED);
    Ok(is_job.then_some((info.dataProcessed, info.dataTotal)))
}

pub(super) fn revert(
    connection: &Connection,
    vm: VmId,
    layers: &Layers,
    id: &SnapshotId,
    then: PowerState,
) -> Result<(), Failure> {
    let (domain, target) = snapshot(connection, vm, id)?;
    let xml = full_xml(&target)?;
    let recorded = snapshot_xml::parse(&xml)?;
    let followed = snapshot_write::without_chains(&xml)?;
    match layers.snapshots.iter().find(|(_, parts)| parts.is_current) {
        Some((current, parts)) => {
            give_up_active(connection, vm, layers, current, parts)?;
            if followed != xml && current != id {
                redefine(&domain, &target, &followed)?;
            }
        }
        // libvirt 11.3 takes it for granted that one is, and its daemon dies of a null pointer where none is.
        None => {
            let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | sys::VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT;
            domain.create_snapshot_xml(&followed, flags)?;
        }
    }
    let taken = |second: u64| {
        recorded.files.frozen.values().any(|(path, _)| bounded::files::exists(&path.with_extension(second.to_string())))
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if taken(now) || taken(now + 1) {
        thread::sleep(ONE_NAME);
    }
    revert_internal(connection, vm, id, then)
}

/// libvirt removes what it has as the overlays of the current snapshot, even where another branch lies on them. So it gets
/// the active files as such, which are what the revert gives up.
fn give_up_active(
    connection: &Connection,
    vm: VmId,
    layers: &Layers,
    current: &SnapshotId,
    parts: &Parts,
) -> Result<(), Failure> {
    let (domain, snapshot) = snapshot(connection, vm, current)?;
    let before = full_xml(&snapshot)?;
    let xml = on_active(&snapshot_write::without_chains(&before)?, layers, parts)?;
    if xml == before { Ok(()) } else { redefine(&domain, &snapshot, &xml) }
}

/// The current snapshot with the active files as its overlays. An active file that was not created by snapshots is nobody's to give
/// up: somebody gave the disk another image.
fn on_active(xml: &str, layers: &Layers, parts: &Parts) -> Result<String, Failure> {
    let mut xml = xml.to_owned();
    for (target, path) in snapshot_xml::parse(&xml)?.files.overlays {
        let (Some(live), Some(frozen)) = (layers.live.get(&target), parts.frozen.get(&target)) else { continue };
        let lies_above = live != frozen && layers.chain(live).any(|path| path == frozen);
        if lies_above && layers.ours.contains(live) && !is_same(&path, live) {
            xml = snapshot_write::with_source(&xml, &path.to_string_lossy(), live, "qcow2")?;
        }
    }
    Ok(xml)
}

/// Changes what is written about a snapshot. What libvirt has on the current one beside its XML (`<revertDisks>`: which overlays a
/// revert gives up) it loses by that, and would take the overlays in the XML instead. So these become the active files, too.
pub(super) fn write_description(
    connection: &Connection,
    vm: VmId,
    layers: &Layers,
    id: &SnapshotId,
    description: &str,
) -> Result<(), Failure> {
    let (domain, snapshot) = snapshot(connection, vm, id)?;
    let mut xml = snapshot_write::with_description(&full_xml(&snapshot)?, description)?;
    if let Some(parts) = layers.snapshots.get(id).filter(|parts| parts.is_current) {
        xml = on_active(&xml, layers, parts)?;
    }
    redefine(&domain, &snapshot, &xml)
}

pub(super) fn mark_deleted(connection: &Connection, vm: VmId, layers: &Layers, id: &SnapshotId) -> Result<(), Failure> {
    let (_domain, snapshot) = snapshot(connection, vm, id)?;
    let recorded = snapshot_xml::parse(&full_xml(&snapshot)?)?;
    if recorded.deleted {
        return Ok(());
    }
    write_description(connection, vm, layers, id, &recorded.label.encode_deleted())
}
