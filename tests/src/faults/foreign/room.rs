//! A room: a few VMs that are off, with small disks, and images around them, in directories of their own between the host's images.
//! An administrator and a user are at work in it. Rooms share the host, its storage and the service, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use proto::v1;
use uuid::Uuid;

use super::super::judge::{Kind, Violation};
use super::super::rng::Rng;
use super::super::world::World;
use super::content::{Content, May};
use super::disk_tools as tools;
use super::ledger::{Disk, Ledger, Vm};
use super::moved::Moved;
use super::script::Steps;
use crate::client::Client;

/// VMs of a room: how many disks each has, whether users have snapshots of it, and on which host it is first.
const VMS: [(usize, bool, usize); 6] =
    [(1, true, 0), (2, true, 0), (1, true, 1), (1, false, 0), (1, false, 0), (1, false, 1)];
/// The hosts of a room.
pub const HOSTS: usize = 2;

/// What came of an act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, with words about it.
    Done(String),
    /// A tool refused, and nothing was changed.
    Refused(String),
    /// There was nothing that it could be done to.
    Impossible,
}

/// What an administrator did to a VM while a user's operation was under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Wrote this number into this cluster of a disk.
    Wrote(String, usize, u32),
    /// Took a disk, with this active image, out of the definition.
    Detached(String, PathBuf),
    /// Gave the VM a disk with this image.
    Attached(String, PathBuf, May),
    /// Gave a disk, with the first image, the second one.
    Swapped(String, PathBuf, PathBuf, May),
    /// Removed the definition.
    Undefined,
}

/// What happens to a VM beside a user's operation.
#[derive(Debug, Default)]
pub struct Race {
    /// The VM's number.
    pub vm: usize,
    /// What administrators have done to it, in order, each with the number of the entry in the ledger: the VM may be on two hosts.
    pub effects: Vec<(usize, Effect)>,
    /// Where it was moved to.
    pub moved: Vec<Moved>,
}

/// A room.
pub struct Room {
    pub(super) world: Arc<World>,
    pub(super) name: String,
    pub(super) directories: Vec<PathBuf>,
    pub(super) pool: String,
    pub(super) ledger: Ledger,
    pub(super) race: Option<Race>,
    pub(super) steps: Steps,
    pub(super) json: Arc<Client>,
    pub(super) grpc: Arc<Client>,
    pub(super) storage: v1::StorageKind,
    /// Names and numbers that were used up.
    pub(super) used: u32,
    pub(super) held: Vec<Held>,
    /// What does not respond for a while.
    pub(super) hangs: Vec<JoinHandle<()>>,
    /// Foreign operations that were done.
    pub(super) done: u64,
}

/// A process that has an image open. It ends with this.
pub struct Held(pub Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Room {
    /// Makes one, with its VMs and images.
    pub async fn new(world: Arc<World>, number: usize, round: &Rng, storage: v1::StorageKind) -> Result<Self> {
        let (json, grpc) = world.callers()?;
        let (json, grpc) = (Arc::new(json), Arc::new(grpc));
        let name = format!("room{number}");
        let directories: Vec<PathBuf> = ["a", "b"].map(|part| world.rooms().join(&name).join(part)).into();
        for directory in &directories {
            std::fs::create_dir_all(directory)?;
        }
        let pool = format!("pool-{name}");
        let steps = Steps::new(round, number);
        let (ledger, race, held, hangs, used, done) = (Ledger::default(), None, Vec::new(), Vec::new(), 0, 0);
        let mut room =
            Self { world, name, directories, pool, ledger, race, steps, json, grpc, storage, used, held, hangs, done };
        tokio::task::block_in_place(|| room.furnish())?;
        for vm in room.ledger.vms.iter().filter(|vm| vm.is_served) {
            room.grpc.vm_in_state(&vm.resource(), v1::VmState::Shutoff).await?;
        }
        Ok(room)
    }

    fn furnish(&mut self) -> Result<()> {
        let target = self.directories[1].display().to_string();
        for host in 0..HOSTS {
            self.world.virsh_on(host, &["pool-define-as", &self.pool, "dir", "--target", &target])?;
            self.world.virsh_on(host, &["pool-start", &self.pool])?;
        }
        for (disks, is_served, host) in VMS {
            let mut vm = Vm {
                name: self.fresh("vm"),
                uuid: Uuid::new_v4(),
                host,
                is_served,
                undefined: None,
                disks: BTreeMap::new(),
                snapshots: BTreeMap::new(),
                current: None,
            };
            for target in ["vda", "vdb"].into_iter().take(disks) {
                let (path, may) = self.new_image("disk", u64::from(self.used))?;
                vm.disks.insert(target.to_owned(), Disk { path, may });
            }
            let mut xml = definition(&vm);
            if !is_served && let Some(disk) = vm.disks.get("vda") {
                xml = as_volume(&xml, &disk.path, &self.directories[1], &self.pool);
            }
            self.define(host, &xml)?;
            self.ledger.vms.push(vm);
        }
        for _ in 0..2 {
            let (path, may) = self.new_image("golden", u64::from(self.used))?;
            self.ledger.loose.insert(path, may);
        }
        Ok(())
    }

    /// Takes new tokens: a round may outlive those that it began with.
    pub(super) fn renew_tokens(&mut self) -> Result<()> {
        let (json, grpc) = self.world.callers()?;
        (self.json, self.grpc) = (Arc::new(json), Arc::new(grpc));
        Ok(())
    }

    /// A name that nothing has yet.
    pub(super) fn fresh(&mut self, stem: &str) -> String {
        self.used += 1;
        format!("{stem}-{}-{}", self.name, self.used)
    }

    /// A path for an image that nothing has yet.
    pub(super) fn fresh_path(&mut self, stem: &str, which: u64) -> PathBuf {
        let name = self.fresh(stem);
        self.directories[(which >> 8) as usize % self.directories.len()].join(format!("{name}.qcow2"))
    }

    /// A number that nothing was written with yet.
    pub(super) fn number(&mut self) -> u32 {
        self.used += 1;
        self.used
    }

    /// Makes an image with something on it.
    pub(super) fn new_image(&mut self, stem: &str, which: u64) -> Result<(PathBuf, May)> {
        let path = self.fresh_path(stem, which);
        tools::create(&path)?;
        let (slot, number) = ((which >> 16) as usize % super::content::SLOTS, self.number());
        match tools::write(&self.scratch(), &path, slot, number)? {
            tools::Written::Done => {}
            other => anyhow::bail!("a new image cannot be written to: {other:?}"),
        }
        Ok((path, May::exactly(Content::default().with(slot, number))))
    }

    /// Where files of the harness are, outside the host's images.
    pub(super) fn scratch(&self) -> PathBuf {
        self.world.scratch().to_owned()
    }

    pub(super) fn tell(&self, what: &str) {
        self.world.history.tell(&self.name, what);
    }

    pub(super) fn violated(&self, kind: Kind, what: String) {
        self.world.history.violated(vec![Violation { kind, machine: self.name.clone(), what }]);
    }

    /// What is on an image, or in a snapshot inside it.
    pub(super) fn read(&self, image: &Path, tag: Option<&str>) -> Result<Content> {
        tools::read(&self.scratch(), image, tag)
    }

    /// The images that nobody writes to: others lie on them, or external snapshots hold them.
    pub(super) fn bases(&self) -> BTreeSet<PathBuf> {
        let mut bases = tools::bases(&self.directories);
        bases.extend(self.ledger.frozen.iter().cloned());
        bases
    }

    /// The active images of VMs and those of undefined ones.
    pub(super) fn active(&self) -> BTreeSet<PathBuf> {
        self.ledger.vms.iter().flat_map(|vm| vm.disks.values()).map(|disk| disk.path.clone()).collect()
    }

    /// Whether a user's operation on this VM is under way, on whichever host.
    pub(super) fn is_raced(&self, vm: usize) -> bool {
        self.race.as_ref().is_some_and(|race| race.vm == vm || self.ledger.twins(race.vm).contains(&vm))
    }

    /// Notes what was done to a VM while a user's operation on it is under way.
    pub(super) fn effect(&mut self, vm: usize, effect: Effect) {
        if self.is_raced(vm)
            && let Some(race) = &mut self.race
        {
            race.effects.push((vm, effect));
        }
    }

    /// virsh on the host of a VM.
    pub(super) fn virsh_for(&self, vm: usize, arguments: &[&str]) -> Result<String> {
        self.world.virsh_on(self.ledger.vms[vm].host, arguments)
    }

    /// The definition that the next start uses.
    pub(super) fn xml(&self, vm: &Vm) -> Result<String> {
        self.world.virsh_on(vm.host, &["dumpxml", &vm.uuid.to_string(), "--inactive"])
    }

    /// A VM's disks as libvirt has them now, by target device.
    pub(super) fn paths(&self, vm: &Vm) -> Result<BTreeMap<String, PathBuf>> {
        Ok(disks_of(&self.xml(vm)?, &self.directories[1]))
    }

    pub(super) fn define(&self, host: usize, xml: &str) -> Result<()> {
        self.virsh_with(xml, |file| self.world.virsh_on(host, &["define", file])).map(drop)
    }

    /// virsh with a file of this text.
    pub(super) fn virsh_with(&self, text: &str, virsh: impl FnOnce(&str) -> Result<String>) -> Result<String> {
        let file = self.scratch().join(format!("{}.xml", Uuid::new_v4()));
        std::fs::write(&file, text)?;
        let done = virsh(&file.display().to_string());
        std::fs::remove_file(&file).context("virsh's file")?;
        done
    }
}

/// The disks in a definition: volumes are those of the room's pool.
pub fn disks_of(xml: &str, pool: &Path) -> BTreeMap<String, PathBuf> {
    let value = |text: &str, before: &str| -> Option<String> {
        Some(text.split(before).nth(1)?.split('\'').next()?.to_owned())
    };
    let disks = xml.split("<disk ").skip(1).filter_map(|disk| disk.split("</disk>").next());
    let found = disks.filter_map(|disk| {
        let path = value(disk, "<source file='").map(PathBuf::from);
        let path = path.or_else(|| Some(pool.join(value(disk, " volume='")?)));
        Some((value(disk, "<target dev='")?, path?))
    });
    found.collect()
}

fn definition(vm: &Vm) -> String {
    let disk = |(target, disk): (&String, &Disk)| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
             <target dev='{target}' bus='virtio'/></disk>",
            disk.path.display()
        )
    };
    let disks: String = vm.disks.iter().map(disk).collect();
    format!(
        "<domain type='qemu'><name>{}</name><uuid>{}</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{disks}</devices></domain>",
        vm.name, vm.uuid
    )
}

/// The definition with a disk named as a volume of the pool, if it is in the pool's directory.
fn as_volume(xml: &str, path: &Path, directory: &Path, pool: &str) -> String {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return xml.to_owned() };
    if parent != directory {
        return xml.to_owned();
    }
    let file = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>",
        path.display()
    );
    let volume = format!(
        "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='{pool}' volume='{}'/>",
        name.display()
    );
    xml.replace(&file, &volume)
}
