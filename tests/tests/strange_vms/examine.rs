//! The operations that each VM is put through, and what has to be read from its disks after each.
//!
//! Off: a snapshot, a revert. Running: a live snapshot and one with memory, a revert to each, a deletion. Off again: a deletion
//! of all, then a purge. Before each snapshot every disk has a mark of its own time; after a revert the marks of that time have
//! to be read again: by `qemu-io` from each disk, by the guest from its disk and its RAM. Neighbours keep their marks throughout.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::v1;
use tests::client::Client;
use tests::guest::{Report, ask};
use tests::images;
use tests::libvirtd::Libvirtd;

use super::cell::{Ask, Cell, attempt};
use super::draft::Machine;

/// How long the agent may take to tell of a VM.
const KNOWN: Duration = Duration::from_secs(30);

/// The columns of the table.
pub const COLUMNS: [&str; 9] = [
    "create, off",
    "revert, off",
    "create live",
    "revert to live",
    "create with memory",
    "revert to memory",
    "delete, running",
    "delete, off",
    "purge",
];

/// What came of the operations, and what went wrong.
#[derive(Debug, Default)]
pub struct Examined {
    /// A cell for each column.
    pub cells: Vec<Cell>,
    /// Violations of what the matrix promises.
    pub violations: Vec<String>,
}

/// Somebody who examines a VM.
pub struct Examiner<'a> {
    pub client: &'a Client,
    pub daemon: &'a Libvirtd,
    pub machine: &'a Machine,
    examined: Examined,
    is_after: bool,
}

impl<'a> Examiner<'a> {
    pub fn new(client: &'a Client, daemon: &'a Libvirtd, machine: &'a Machine) -> Self {
        Self { client, daemon, machine, examined: Examined::default(), is_after: false }
    }

    /// Puts the VM through everything.
    pub async fn examine(mut self) -> Examined {
        if let Err(error) = self.all().await {
            self.examined.violations.push(format!("{error:#}"));
        }
        self.examined.cells.resize(COLUMNS.len(), Cell::NotTried);
        self.examined
    }

    async fn all(&mut self) -> Result<()> {
        let file = self.machine.dir.join("domain.xml");
        fs::write(&file, &self.machine.xml)?;
        self.daemon.virsh(&["define", &file.display().to_string()])?;
        self.mark(0x61)?;
        for act in &self.machine.before {
            act(self.daemon, self.machine).context("before the first snapshot")?;
        }
        self.known().await?;
        self.off().await?;
        self.running().await?;
        self.deletions().await
    }

    async fn off(&mut self) -> Result<()> {
        let taken = self.cell(Ask::Create(v1::SnapshotContent::Disks)).await?;
        for act in &self.machine.after {
            act(self.daemon, self.machine).context("after the first snapshot")?;
        }
        self.is_after = true;
        let off = self.state()? == "shut off";
        self.foreign().await?;
        let target = match taken {
            Some(operation) => Some(operation.snapshot),
            None => self.any_snapshot().await?,
        };
        let Some(target) = target else { return self.not_tried(1) };
        if off {
            self.mark(0x62)?;
        }
        let reverted = self.cell(Ask::Revert(target)).await?;
        if off {
            self.has_mark(if reverted.is_some() { 0x61 } else { 0x62 })?;
        }
        Ok(())
    }

    /// Each snapshot of other tools is either reverted to, and then every disk holds what it held at that moment, or it is not.
    async fn foreign(&mut self) -> Result<()> {
        for (name, mark) in &self.machine.foreign {
            self.mark(0x62)?;
            let listed = self.client.snapshots(&self.vm()).await?;
            let found = listed.into_iter().find(|snapshot| snapshot.display_name == *name);
            let found = found.with_context(|| format!("snapshot {name:?} of virsh is not listed"))?;
            match attempt(self.client, self.daemon, self.machine, &Ask::Revert(found.name)).await {
                Ok((Cell::Works, _)) => self.has_mark(*mark).with_context(|| format!("reverted to {name:?}"))?,
                Ok(_) => self.has_mark(0x62)?,
                Err(error) => self.examined.violations.push(format!("a revert to {name:?}: {error:#}")),
            }
        }
        Ok(())
    }

    async fn running(&mut self) -> Result<()> {
        if !self.machine.starts {
            return self.not_tried(5);
        }
        if self.state()? == "shut off" {
            self.machine.virsh(self.daemon, "start", &[]).context("the VM does not start")?;
        }
        self.in_state(v1::VmState::Running).await?;
        self.write('c')?;
        let live = self.cell(Ask::Create(v1::SnapshotContent::Disks)).await?;
        match &live {
            None => self.not_tried(1)?,
            Some(live) => {
                self.write('d')?;
                let reverted = self.cell(Ask::Revert(live.snapshot.clone())).await?;
                self.reads(if reverted.is_some() { 'c' } else { 'd' }, false)?;
            }
        }
        self.write('e')?;
        let memory = self.cell(Ask::Create(v1::SnapshotContent::DisksAndMemory)).await?;
        match &memory {
            None => self.not_tried(1)?,
            Some(memory) => {
                self.write('f')?;
                let reverted = self.cell(Ask::Revert(memory.snapshot.clone())).await?;
                self.reads(if reverted.is_some() { 'e' } else { 'f' }, true)?;
            }
        }
        let victim = memory.or(live).map(|operation| operation.snapshot);
        let before = self.report()?;
        match victim {
            Some(victim) => {
                self.cell(Ask::Delete(victim, v1::DeleteScope::Only)).await?;
            }
            None => self.not_tried(1)?,
        }
        let after = self.report()?;
        ensure!(before == after, "a deletion changed what the guest reads: {before:?}, then {after:?}");
        self.neighbours_unchanged()
    }

    async fn deletions(&mut self) -> Result<()> {
        if self.state()? == "running" || self.state()? == "paused" {
            self.machine.virsh(self.daemon, "destroy", &[])?;
            self.in_state(v1::VmState::Shutoff).await?;
        }
        let root = self.client.snapshots(&self.vm()).await?.into_iter().find(|one| one.parent_snapshot.is_empty());
        self.mark(0x67)?;
        match root {
            Some(root) => {
                self.cell(Ask::Delete(root.name, v1::DeleteScope::Subtree)).await?;
            }
            None => self.not_tried(1)?,
        }
        self.has_mark(0x67)?;
        // What can be taken now is purged; what cannot is purged of nothing.
        let _ = attempt(self.client, self.daemon, self.machine, &Ask::Create(v1::SnapshotContent::Disks)).await?;
        let purged = self.cell(Ask::Purge).await?;
        self.has_mark(0x67)?;
        if purged.is_some() {
            let left = self.client.snapshots(&self.vm()).await?;
            ensure!(left.is_empty(), "after a purge there are {left:?}");
            self.no_tags()?;
        }
        self.neighbours_unchanged()
    }

    /// No snapshot of the service may be in an image.
    fn no_tags(&self) -> Result<()> {
        for file in self.machine.disks.iter().flat_map(|disk| &disk.files) {
            let tags = images::internal_snapshots(file).unwrap_or_default();
            ensure!(!tags.iter().any(|tag| tag.starts_with("snap-")), "{} keeps {tags:?}", file.display());
        }
        Ok(())
    }

    /// Tries one operation and fills its column. A violation is noted, and counts as an operation that did not work.
    async fn cell(&mut self, ask: Ask) -> Result<Option<v1::Operation>> {
        let tried = attempt(self.client, self.daemon, self.machine, &ask).await;
        let (cell, operation) = match tried {
            Ok(done) => done,
            Err(error) => {
                self.examined.violations.push(format!("{ask:?}: {error:#}"));
                (Cell::NotTried, None)
            }
        };
        self.examined.cells.push(cell);
        self.neighbours_unchanged()?;
        Ok(operation)
    }

    #[expect(clippy::unnecessary_wraps, reason = "it stands beside operations that can fail")]
    fn not_tried(&mut self, columns: usize) -> Result<()> {
        self.examined.cells.extend(std::iter::repeat_n(Cell::NotTried, columns));
        Ok(())
    }

    fn vm(&self) -> String {
        format!("vms/{}", self.machine.uuid)
    }

    fn state(&self) -> Result<String> {
        Ok(self.machine.virsh(self.daemon, "domstate", &[])?.trim().to_owned())
    }

    async fn any_snapshot(&self) -> Result<Option<String>> {
        Ok(self.client.snapshots(&self.vm()).await?.into_iter().next().map(|snapshot| snapshot.name))
    }

    async fn known(&self) -> Result<()> {
        let begun = Instant::now();
        while self.client.vm(&self.vm()).await.is_err() {
            ensure!(begun.elapsed() < KNOWN, "the VM is not known to the API");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn in_state(&self, state: v1::VmState) -> Result<()> {
        self.client.vm_in_state(&self.vm(), state).await.map(drop)
    }

    /// Marks every disk. Whatever keeps one from being marked is the form's own business, and no mark is looked for there.
    fn mark(&self, mark: u8) -> Result<()> {
        self.machine
            .disks
            .iter()
            .try_for_each(|disk| disk.mark(mark).with_context(|| format!("marking {}", disk.target)))
    }

    fn has_mark(&self, mark: u8) -> Result<()> {
        for disk in &self.machine.disks {
            ensure!(disk.has_mark(mark)?, "disk {} does not hold the mark {mark:#x}", disk.target);
        }
        Ok(())
    }

    fn neighbours_unchanged(&self) -> Result<()> {
        let late = self.machine.late_neighbours.iter().filter(|_| self.is_after);
        for neighbour in self.machine.neighbours.iter().chain(late) {
            ensure!(neighbour.has_mark(0x4e)?, "the neighbour {} was changed", neighbour.target);
        }
        Ok(())
    }

    fn report(&self) -> Result<Report> {
        ask(&self.machine.serial, None)
    }

    fn write(&self, marker: char) -> Result<()> {
        ask(&self.machine.serial, Some(marker)).map(drop)
    }

    /// The guest reads this marker from its disks, and from its RAM where that was restored too.
    fn reads(&self, marker: char, memory: bool) -> Result<()> {
        let report = self.report()?;
        // A guest that was booted reads its RAM's marker from the disk.
        let right =
            report.disk == marker && report.ram == marker && report.second_disk.is_none_or(|x| x == marker || x == '_');
        ensure!(right, "the guest reads {report:?} and not {marker:?} (memory: {memory})");
        Ok(())
    }
}
