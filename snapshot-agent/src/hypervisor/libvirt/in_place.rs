//! Going back within the QEMU process that there is, by its own `snapshot-load` (measured: ADR 23).
//!
//! QEMU does it in its main loop and says nothing meanwhile, so there is no progress and no way to stop it. It goes to the
//! snapshot on each disk and then loads the memory and the devices. The job stays, with how it ended, until it is dismissed,
//! also when libvirt's daemon is started anew; it is all that tells a guest of which some was loaded from one that merely stands
//! still.

use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use snapshot_core::hardware::{Comparison, compare};
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::vm::VmFacts;
use snapshot_core::{Error, Reason};
use virt::domain::Domain;
use virt_sys as sys;

use super::super::{Failure, Load, hardware_xml};
use super::link::Connection;
use super::{action, monitor};

/// QEMU has `snapshot-load` since 6.0. One that was started before it was upgraded refuses the command, before anything is done.
const QEMU_WITH_IT: u32 = 6_000_000;

/// How often QEMU is asked how far it is, and how long it may take: it reads the running state from a disk.
const ASK_EVERY: Duration = Duration::from_millis(20);
const LOADED_WITHIN: Duration = Duration::from_secs(10 * 60);

/// A disk, with the snapshots in its image.
#[derive(Debug, Deserialize)]
struct Block {
    #[serde(default)]
    inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
struct Inserted {
    #[serde(rename = "node-name", default)]
    node: String,
    image: Image,
    #[serde(rename = "dirty-bitmaps", default)]
    bitmaps: Vec<Bitmap>,
}

/// A dirty bitmap of a disk, which QEMU has in memory.
#[derive(Debug, Deserialize)]
struct Bitmap {
    #[serde(default)]
    name: String,
    #[serde(default)]
    persistent: bool,
}

#[derive(Debug, Deserialize)]
struct Image {
    #[serde(default)]
    snapshots: Vec<Part>,
}

/// A part of a snapshot in an image.
#[derive(Debug, Deserialize)]
struct Part {
    name: String,
    #[serde(rename = "vm-state-size")]
    state_bytes: u64,
}

pub(super) fn hardware(connection: &Connection, vm: VmId, id: &SnapshotId) -> Result<Comparison, Failure> {
    if connection.connect().hyp_version()? < QEMU_WITH_IT {
        return Ok(Comparison::Different("the host's QEMU is older than 6.0".to_owned()));
    }
    let (domain, snapshot) = action::snapshot(connection, vm, id)?;
    let next_start = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?;
    let now = hardware_xml::now(&domain.xml_desc(0)?, &next_start)?;
    if domain.is_active()? {
        let blocks: Vec<Block> = monitor::ask(&domain, "query-block", json!({}))?;
        if let Some(bitmap) = bitmap(&blocks)? {
            return Ok(Comparison::Different(format!("the dirty bitmap {:?} is active on a disk", bitmap.name)));
        }
    }
    match (hardware_xml::then(&snapshot.xml_desc(0)?)?, now) {
        (Some(then), Some(now)) => Ok(compare(&then, &now)),
        _ => Ok(Comparison::Different("what the machine was made of is not written".to_owned())),
    }
}

/// A bitmap on one of the disks, with which QEMU does not load. One that is not persistent ends with the process; a persistent one
/// that libvirt knows nothing of would keep libvirt's own revert from being done, after it has ended the process.
fn bitmap(blocks: &[Block]) -> Result<Option<&Bitmap>, Failure> {
    let all = || blocks.iter().filter_map(|block| block.inserted.as_ref()).flat_map(|disk| &disk.bitmaps);
    match all().find(|bitmap| bitmap.persistent) {
        Some(bitmap) => {
            let message = format!(
                "a disk has the persistent dirty bitmap {:?}, with which QEMU reverts no image: delete it first",
                bitmap.name
            );
            Err(Failure::Precondition(Error::new(Reason::CheckpointsPresent, message)))
        }
        None => Ok(all().next()),
    }
}

/// Loads it, or waits for the job that does.
pub(super) fn load(connection: &Connection, vm: &VmFacts, id: &SnapshotId, job: &str) -> Result<(), Failure> {
    let domain = connection.domain(vm.id)?;
    if find(&domain, job)?.is_none() {
        begin(&domain, vm, id, job)?;
    }
    let since = Instant::now();
    loop {
        let Some(now) = find(&domain, job)? else {
            return Err(Failure::Unintelligible("QEMU has forgotten what it was told to load".to_owned()));
        };
        match (now.status.as_str(), now.error) {
            ("concluded", None) => return Ok(()),
            ("concluded", Some(why)) => {
                return Err(Failure::Refused {
                    code: sys::VIR_ERR_OPERATION_FAILED,
                    message: format!("QEMU, snapshot-load: {why}"),
                });
            }
            _ if since.elapsed() > LOADED_WITHIN => {
                return Err(Failure::Unintelligible("QEMU does not come to the end of a load".to_owned()));
            }
            _ => thread::sleep(ASK_EVERY),
        }
    }
}

/// Nothing is begun unless each disk has the snapshot and one of them the running state.
fn begin(domain: &Domain, vm: &VmFacts, id: &SnapshotId, job: &str) -> Result<(), Failure> {
    let targets: Vec<&str> = vm.writable_disks().map(|disk| disk.target.as_str()).collect();
    let nodes: Vec<String> = monitor::nodes(domain, &targets)?.into_values().collect();
    let blocks: Vec<Block> = monitor::ask(domain, "query-block", json!({}))?;
    let state = holder(&blocks, &nodes, id.as_str()).map_err(Failure::Unintelligible)?;
    let arguments = json!({ "job-id": job, "tag": id.as_str(), "vmstate": state, "devices": nodes });
    let _: Value = monitor::ask(domain, "snapshot-load", arguments)?;
    Ok(())
}

/// The node whose image has the running state of a snapshot that all of these have.
fn holder<'a>(blocks: &'a [Block], nodes: &[String], name: &str) -> Result<&'a str, String> {
    let mut holders = Vec::new();
    for node in nodes {
        let disk = blocks.iter().filter_map(|block| block.inserted.as_ref()).find(|disk| disk.node == *node);
        let parts = disk.iter().flat_map(|disk| &disk.image.snapshots).filter(|part| part.name == name);
        let parts: Vec<&Part> = parts.collect();
        let (Some(disk), [part]) = (disk, parts.as_slice()) else {
            return Err(format!("{node} has snapshot {name} {} times", parts.len()));
        };
        if part.state_bytes > 0 {
            holders.push(disk.node.as_str());
        }
    }
    match holders.as_slice() {
        [holder] => Ok(holder),
        _ => Err(format!("{} disks have the running state of snapshot {name}", holders.len())),
    }
}

/// A machine that is off has loaded nothing.
pub(super) fn loaded(connection: &Connection, vm: VmId, job: &str) -> Result<Load, Failure> {
    let domain = connection.domain(vm)?;
    if !domain.is_active()? {
        return Ok(Load::None);
    }
    Ok(match find(&domain, job)? {
        None => Load::None,
        Some(job) if job.status != "concluded" => Load::Running,
        Some(job) if job.error.is_some() => Load::Failed,
        Some(_) => Load::Done,
    })
}

pub(super) fn forget(connection: &Connection, vm: VmId, job: &str) -> Result<(), Failure> {
    let domain = connection.domain(vm)?;
    if domain.is_active()? && find(&domain, job)?.is_some() {
        let _: Value = monitor::ask(&domain, "job-dismiss", json!({ "id": job }))?;
    }
    Ok(())
}

fn find(domain: &Domain, job: &str) -> Result<Option<monitor::Job>, Failure> {
    Ok(monitor::jobs(domain)?.into_iter().find(|other| other.id == job))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 10 tells of two disks and an empty drive.
    fn blocks(first: &str, second: &str) -> Vec<Block> {
        let told = format!(
            r#"[{{"device": "", "inserted": {{"node-name": "n2", "image": {{"filename": "/a", "snapshots": [{first}]}}}}}},
                {{"device": "", "inserted": {{"node-name": "n1", "image": {{"filename": "/b", "snapshots": [{second}]}}}}}},
                {{"device": "ide0-0-0"}}]"#
        );
        serde_json::from_str(&told).unwrap()
    }

    fn part(name: &str, bytes: u64) -> String {
        format!(r#"{{"id": "1", "name": "{name}", "vm-state-size": {bytes}, "date-sec": 1}}"#)
    }

    #[test]
    fn a_bitmap_keeps_a_load_from_being_begun_and_a_persistent_one_every_revert() {
        let with = |bitmaps: &str| -> Vec<Block> {
            let told = format!(
                r#"[{{"inserted": {{"node-name": "n1", "image": {{"filename": "/a"}}, "dirty-bitmaps": [{bitmaps}]}}}}]"#
            );
            serde_json::from_str(&told).unwrap()
        };
        let one = |persistent| format!(r#"{{"name": "b", "persistent": {persistent}, "recording": true, "count": 0}}"#);
        assert!(bitmap(&with("")).unwrap().is_none());
        assert!(bitmap(&blocks(&part("s", 1), "")).unwrap().is_none());
        assert_eq!(bitmap(&with(&one(false))).unwrap().unwrap().name, "b");
        let refused = bitmap(&with(&format!("{}, {}", one(false), one(true)))).unwrap_err();
        assert!(matches!(refused, Failure::Precondition(error) if error.reason() == Reason::CheckpointsPresent));
    }

    #[test]
    fn the_running_state_is_where_it_is_and_nothing_is_begun_otherwise() {
        let nodes = ["n1".to_owned(), "n2".to_owned()];
        let held = |first: &str, second: &str| {
            let blocks = blocks(first, second);
            holder(&blocks, &nodes, "s").map(str::to_owned)
        };
        assert_eq!(held(&part("s", 848_399), &part("s", 0)), Ok("n2".to_owned()));
        assert_eq!(held(&part("s", 0), &part("s", 848_399)), Ok("n1".to_owned()));
        assert!(held(&part("s", 1), "").is_err());
        assert!(held(&part("s", 1), &part("other", 0)).is_err());
        assert!(held(&part("s", 0), &part("s", 0)).is_err());
        assert!(held(&part("s", 1), &part("s", 1)).is_err());
        let twice = format!("{}, {}", part("s", 1), part("s", 1));
        assert!(held(&twice, &part("s", 0)).is_err());
        assert!(holder(&blocks(&part("s", 1), ""), &["n7".to_owned()], "s").is_err());
    }
}
