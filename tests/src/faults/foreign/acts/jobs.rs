//! Jobs of QEMU's block layer, on a VM that is started for them without running a guest, and switched off again: backups with
//! checkpoints, block copies, and block commits of another tool's overlay.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::super::ledger::Disk;
use super::super::room::{Effect, Outcome, Room};
use super::pick;

/// How long a job on half a MiB may take.
const JOB: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(50);

impl Room {
    /// Starts a VM without running it, has this done with one of its disks, and switches it off.
    fn while_it_is_on(
        &mut self,
        which: u64,
        job: impl FnOnce(&mut Self, usize, &str, PathBuf) -> Result<String>,
    ) -> Result<Outcome> {
        let Some(vm) = self.pick_vm(which, Self::is_defined) else { return Ok(Outcome::Impossible) };
        let uuid = self.ledger.vms[vm].uuid.to_string();
        if let Err(error) = self.virsh_for(vm, &["start", &uuid, "--paused"]) {
            return Ok(super::refused(&error));
        }
        let paths = self.paths(&self.ledger.vms[vm]).map(|paths| paths.into_iter().collect::<Vec<_>>());
        let done = paths.and_then(|paths| match pick(&paths, which >> 8).cloned() {
            Some((target, path)) => job(self, vm, &target, path),
            None => Ok(String::new()),
        });
        self.is_off(vm)?;
        Ok(match done {
            Ok(what) if what.is_empty() => Outcome::Impossible,
            Ok(what) => Outcome::Done(what),
            Err(error) => super::refused(&error),
        })
    }

    /// Switches a VM off, which a revert may have done already.
    pub(super) fn is_off(&self, vm: usize) -> Result<()> {
        let uuid = self.ledger.vms[vm].uuid.to_string();
        let off = (0..3).any(|_| {
            let _ = self.virsh_for(vm, &["destroy", &uuid]);
            self.virsh_for(vm, &["domstate", &uuid]).map_or(true, |state| state.trim() == "shut off")
        });
        ensure!(off, "{uuid} cannot be switched off");
        Ok(())
    }

    /// `virsh backup-begin` with a checkpoint, which is deleted when the backup is there.
    pub(super) fn backup(&mut self, which: u64) -> Result<Outcome> {
        let target_file = self.fresh_path("backup", which >> 16);
        self.while_it_is_on(which, |room, vm, target, path| {
            let (uuid, name) = (room.ledger.vms[vm].uuid.to_string(), room.fresh("checkpoint"));
            let others = room.ledger.vms[vm].disks.keys().filter(|other| *other != target);
            let (mut disks, mut marks) = (String::new(), String::new());
            for other in others {
                disks += &format!("<disk name='{other}' backup='no'/>");
                marks += &format!("<disk name='{other}' checkpoint='no'/>");
            }
            let backup = format!(
                "<domainbackup mode='push'><disks><disk name='{target}' backup='yes' type='file'><target file='{}'/>\
                 <driver type='qcow2'/></disk>{disks}</disks></domainbackup>",
                target_file.display()
            );
            let checkpoint = format!(
                "<domaincheckpoint><name>{name}</name><disks><disk name='{target}' checkpoint='bitmap'/>{marks}</disks>\
                 </domaincheckpoint>"
            );
            let files = [("backup.xml", backup), ("checkpoint.xml", checkpoint)].map(|(file, text)| {
                let file = room.scratch().join(format!("{}-{file}", room.name));
                std::fs::write(&file, text).map(|()| file.display().to_string())
            });
            let [backup, checkpoint] = files;
            room.virsh_for(vm, &["backup-begin", &uuid, &backup?, &checkpoint?])?;
            room.job_ends(vm, &uuid)?;
            // A revert may have taken the bitmap and the checkpoint with it.
            let _ = room.virsh_for(vm, &["checkpoint-delete", &uuid, &name]);
            if !room.is_raced(vm) {
                room.found(&target_file)?;
            }
            Ok(format!("{} of {}", target_file.display(), path.display()))
        })
    }

    fn job_ends(&self, vm: usize, uuid: &str) -> Result<()> {
        let begun = Instant::now();
        while !self.virsh_for(vm, &["domjobinfo", uuid])?.contains("None") {
            ensure!(begun.elapsed() < JOB, "the job of {uuid} does not end");
            std::thread::sleep(AGAIN);
        }
        Ok(())
    }

    /// `virsh blockcopy --pivot`: the disk is on the copy afterwards, and its image is left.
    pub(super) fn block_copy(&mut self, which: u64) -> Result<Outcome> {
        let copy = self.fresh_path("blockcopy", which >> 16);
        self.while_it_is_on(which, |room, vm, target, path| {
            let (uuid, file) = (room.ledger.vms[vm].uuid.to_string(), copy.display().to_string());
            let job = ["blockcopy", &uuid, target, "--dest", &file, "--format", "qcow2"];
            room.virsh_for(vm, &[&job[..], &["--transient-job", "--wait", "--pivot"]].concat())?;
            let may = room.ledger.vms[vm].disks.get(target).map(|disk| disk.may.clone()).unwrap_or_default();
            let disk = Disk { path: copy.clone(), may: may.clone() };
            if let Some(was) = room.ledger.vms[vm].disks.insert(target.to_owned(), disk)
                && !room.is_raced(vm)
            {
                room.ledger.let_go(vm, was.path, was.may);
            }
            for known in room.ledger.vms[vm].snapshots.values_mut() {
                known.is_displaced = true;
            }
            room.effect(vm, Effect::Swapped(target.to_owned(), path.clone(), copy.clone(), may));
            Ok(format!("{target} from {} to {file}", path.display()))
        })
    }

    /// An overlay of another tool, without metadata, and its `virsh blockcommit --active --pivot`.
    pub(super) fn block_commit(&mut self, which: u64) -> Result<Outcome> {
        let overlay = self.fresh_path("overlay", which >> 16);
        self.while_it_is_on(which, |room, vm, target, path| {
            if room.bases().contains(&path) || room.ledger.is_of_another(vm, &path) {
                return Ok(String::new());
            }
            let uuid = room.ledger.vms[vm].uuid.to_string();
            let mut specs = vec!["--diskspec".to_owned(), format!("{target},file={}", overlay.display())];
            for other in room.ledger.vms[vm].disks.keys().filter(|other| *other != target) {
                specs.extend(["--diskspec".to_owned(), format!("{other},snapshot=no")]);
            }
            let create = ["snapshot-create-as", &uuid, "--disk-only", "--no-metadata", "--atomic"];
            let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
            room.virsh_for(vm, &[&create[..], &specs[..]].concat())?;
            if let Some(disk) = room.ledger.vms[vm].disks.get_mut(target) {
                disk.path.clone_from(&overlay);
            }
            // Without a base it would merge all that the disk lies on, which snapshots hold.
            let base = path.display().to_string();
            room.virsh_for(vm, &["blockcommit", &uuid, target, "--base", &base, "--active", "--pivot", "--wait"])?;
            if let Some(disk) = room.ledger.vms[vm].disks.get_mut(target) {
                disk.path.clone_from(&path);
            }
            if !room.is_raced(vm) {
                std::fs::remove_file(&overlay)?;
            }
            Ok(format!("{} into {}", overlay.display(), path.display()))
        })
    }
}
