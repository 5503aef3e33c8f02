//! A machine that is on other files than libvirt believes.
//!
//! When libvirt's daemon dies while it takes a snapshot of a running machine, QEMU may have been told to go on with the
//! overlays, and libvirt has not written that down. The next daemon believes the machine to be on the files from before
//! (seen with libvirt 11.3). Nothing tells, but the guest writes into files that libvirt does not know: with the next power
//! off all of that is lost, and whoever removes files that nobody seems to need removes it at once.
//!
//! So QEMU itself is asked where it is. What it has written into the overlay is merged into the file below it, and it goes on
//! with that file: then both are of one mind again. libvirt marks such a machine as tainted by custom monitor commands. Where
//! the machine was switched off before that, the overlay is merged by `qemu-img`.

use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{Layers, Merge, is_overlay_of, overlay_paths};
use snapshot_core::vm::VmFacts;
use virt::domain::Domain;

use super::super::Failure;
use super::super::block_nodes::{Ahead, Block, Node, ahead, nodes_of};
use super::files::{is_same, unlink};
use super::link::Link;
use super::merge::{Nobody, commit_files};
use super::monitor::{ask, jobs};
use crate::beneath::Beneath;
use crate::{qcow2, qemu_img};

/// How often a merge is asked how far it is, and how long it may take. It merges what was written since the daemon died.
const ASK_EVERY: Duration = Duration::from_millis(20);
const MERGED_WITHIN: Duration = Duration::from_secs(10 * 60);
/// How long an empty image may take to be made.
const MADE_WITHIN: Duration = Duration::from_secs(60);

/// Leaves the overlays of this snapshot. Can be repeated from its beginning.
pub(super) fn take_back(
    actions: &Link,
    folders: &Beneath,
    vm: &VmFacts,
    layers: &Layers,
    id: &SnapshotId,
    may_have_run: bool,
) -> Result<(), Failure> {
    if vm.is_active() {
        actions.act("take_back", |connection| in_qemu(&*connection.domain(vm.id)?, folders, id))?;
        if !may_have_run {
            return Ok(());
        }
    }
    in_files(folders, layers, id, may_have_run)
}

fn in_qemu(domain: &Domain, folders: &Beneath, id: &SnapshotId) -> Result<(), Failure> {
    let is_made = |path: &str| is_overlay_of(path, id);
    let nodes: Vec<Node> = ask(domain, "query-named-block-nodes", json!({}))?;
    if nodes_of(&nodes, is_made).is_empty() {
        return Ok(());
    }
    let blocks: Vec<Block> = ask(domain, "query-block", json!({}))?;
    let disks = ahead(&blocks, &nodes, is_made).map_err(Failure::Unintelligible)?;
    for disk in &disks {
        tracing::warn!(%id, ?disk, "QEMU is on a file that libvirt does not know; taking it back");
        merge(domain, disk)?;
    }
    let blocks: Vec<Block> = ask(domain, "query-block", json!({}))?;
    if !ahead(&blocks, &nodes, is_made).map_err(Failure::Unintelligible)?.is_empty() {
        return Err(Failure::Unintelligible("QEMU could not be taken back to the files that libvirt knows".to_owned()));
    }
    end_creating(domain)?;
    // libvirt numbers new ones, and would run into these.
    for node in nodes_of(&nodes, is_made) {
        let _: Value = ask(domain, "blockdev-del", json!({ "node-name": node }))?;
    }
    // All that is in them is below them now.
    let merged: Vec<String> = disks.into_iter().map(|disk| disk.overlay).collect();
    unlink(folders, &merged)
}

/// Lets go of images that QEMU was told to make: until it is told that this was heard of, it keeps them in use. libvirt makes
/// them while it takes a snapshot, and the machine is ours, so nobody waits for any.
fn end_creating(domain: &Domain) -> Result<(), Failure> {
    let since = Instant::now();
    loop {
        let creating: Vec<_> = jobs(domain)?.into_iter().filter(|job| job.kind == "create").collect();
        if creating.is_empty() {
            return Ok(());
        }
        for job in creating.iter().filter(|job| job.status == "concluded") {
            let _: Value = ask(domain, "job-dismiss", json!({ "id": job.id }))?;
        }
        if since.elapsed() > MADE_WITHIN {
            return Err(Failure::Unintelligible("QEMU does not come to the end of making an image".to_owned()));
        }
        thread::sleep(ASK_EVERY);
    }
}

/// Of a machine that is off. When it may have run since, on what is below, what is in the overlay no longer fits that: then
/// both are left as they are, for a person to look at.
fn in_files(folders: &Beneath, layers: &Layers, id: &SnapshotId, may_have_run: bool) -> Result<(), Failure> {
    let disks = layers.live.iter().map(|(target, path)| (target.as_str(), path.as_str()));
    for (target, overlay) in overlay_paths(disks, id) {
        let (Some(live), path) = (layers.live.get(&target), Path::new(&overlay)) else { continue };
        // Where QEMU has never opened it, there may be no image in it yet.
        let below = qcow2::backing_file(path).ok().flatten();
        if !below.is_some_and(|below| is_same(&path.with_file_name(below), live))
            || is_empty(folders, layers, &overlay, live)?
        {
            continue;
        }
        if may_have_run {
            let what = format!("{overlay} holds what a guest wrote, and the machine may have run without it since");
            return Err(Failure::Unintelligible(what));
        }
        tracing::warn!(%id, overlay, "a guest was on a file that libvirt does not know; merging it");
        let merge = Merge { disk: target, above: Vec::new(), top: overlay, base: live.clone(), bytes: 0 };
        commit_files(folders, layers, &merge, &Nobody)?;
    }
    Ok(())
}

/// Whether nothing was written into an overlay.
fn is_empty(folders: &Beneath, layers: &Layers, overlay: &str, below: &str) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Part {
        depth: u32,
        present: bool,
    }
    let args = ["map", "-U", "-f", "qcow2", "--output=json", "--", overlay];
    let mut command = qemu_img::command();
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let read: Vec<&str> = layers.chain(below).collect();
    let map = qemu_img::spawn(folders, command, &[overlay], &read)?.wait_with_output()?;
    if !map.status.success() {
        let words = String::from_utf8_lossy(&map.stderr);
        return Err(Failure::Unintelligible(format!("qemu-img: {}", words.trim())));
    }
    let parts: Vec<Part> = serde_json::from_slice(&map.stdout)
        .map_err(|error| Failure::Unintelligible(format!("what qemu-img says of {overlay}: {error}")))?;
    Ok(!parts.iter().any(|part| part.depth == 0 && part.present))
}

/// Merges the file on top into the one below it, and has QEMU go on with that.
fn merge(domain: &Domain, disk: &Ahead) -> Result<(), Failure> {
    let job = format!("take-back-{}", disk.top);
    if !jobs(domain)?.iter().any(|other| other.id == job) {
        let arguments = json!({ "job-id": job, "device": disk.top, "base-node": disk.base });
        let _: Value = ask(domain, "block-commit", arguments)?;
    }
    let since = Instant::now();
    let mut completed = false;
    while let Some(now) = jobs(domain)?.into_iter().find(|other| other.id == job) {
        if now.status == "ready" && !completed {
            let _: Value = ask(domain, "job-complete", json!({ "id": job }))?;
            completed = true;
        }
        if since.elapsed() > MERGED_WITHIN {
            return Err(Failure::Unintelligible("QEMU does not come to the end of a merge".to_owned()));
        }
        thread::sleep(ASK_EVERY);
    }
    Ok(())
}
