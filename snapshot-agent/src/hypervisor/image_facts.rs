//! The images of a VM as `snapshot_core::images` judges them: every disk with its whole backing chain, and every file that the VM
//! reaches.
//!
//! Each image is read once for a look ([`Images`]), and each chain is followed once, however many snapshots lead to it. A format is
//! believed only where it is told: the first bytes of a raw image are the guest's to write. So a raw image that begins like a
//! qcow2 or a LUKS image is a raw image, as it is for QEMU.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use snapshot_core::Reason;
use snapshot_core::images::{
    Content, DiskImages, Entry, ImageFacts, MAX_CHAIN, SnapshotImages, Uses, of_snapshot, restrictions,
};
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::snapshot::{Content as RecordedContent, Storage};
use snapshot_core::vm::VmFacts;

use super::beyond;
use super::images::{Found, Images};
use super::overlays::text;
use super::snapshot_xml::Recorded;
use crate::bounded::files::{self, resolved};
use crate::qcow2::{self, HostFile, Image, Stamp};
use crate::safety::Held;

/// The bit of an image whose data is in another file.
const DATA_FILE: u64 = 1 << 2;

/// An image of a chain, and the names of its file.
#[derive(Debug, Clone)]
pub(super) struct Link {
    facts: ImageFacts,
    names: Vec<String>,
    /// A file, with its format, that may depend on others which are no part of the chain.
    beyond: Option<(PathBuf, String)>,
}

impl Link {
    /// The names of all files that it depends on, itself included.
    fn reached(&self) -> Vec<String> {
        let beyond = self.beyond.iter().flat_map(|(path, format)| beyond::depends_on(path, format));
        self.names.iter().cloned().chain(beyond.flat_map(|path| plain(&path, false).names)).collect()
    }
}

/// The chains that were followed, by the path and the format that they begin with.
pub(super) type Chains = BTreeMap<(PathBuf, String), Vec<Link>>;

/// The UEFI variables of a VM in a qcow2 file, which libvirt reverts like a disk.
pub(super) const NVRAM: &str = "nvram";

impl Images {
    /// What its images make unavailable for a VM.
    pub(super) fn restrictions(&mut self, vm: &VmFacts, nvram: Option<&Path>) -> Vec<Restriction> {
        let is_on = vm.state != snapshot_core::vm::VmState::Shutoff;
        let mut found = Vec::new();
        for disk in vm.disks.iter().filter(|disk| disk.path.starts_with('/')) {
            let chain = self.facts(Path::new(&disk.path), &disk.format);
            let (target, read_only) = (disk.target.clone(), disk.read_only);
            found.extend(restrictions(&DiskImages { target, read_only, held: is_on, chain }, is_on));
        }
        // It is in a directory of libvirt's, which the agent may not be allowed to read.
        if let Some(path) = nvram.filter(|path| qcow2::open(path).is_ok()) {
            let chain = self.facts(path, "qcow2");
            let disk = DiskImages { target: NVRAM.to_owned(), read_only: false, held: is_on, chain };
            found.extend(restrictions(&disk, is_on));
        }
        found
    }

    /// What the images make unavailable for one of its snapshots, beside what they do for the VM.
    pub(super) fn of_snapshot(&mut self, recorded: &Recorded, vm: &VmFacts, nvram: Option<&Path>) -> Vec<Restriction> {
        if recorded.storage != Storage::Internal {
            return Vec::new();
        }
        let is_on = vm.state != snapshot_core::vm::VmState::Shutoff;
        let mut found = Vec::new();
        let mut tables: Vec<(String, Vec<Entry>)> = Vec::new();
        let live: Vec<(String, PathBuf)> = vm
            .writable_disks()
            .filter(|disk| disk.format == "qcow2")
            .map(|disk| (disk.target.clone(), PathBuf::from(&disk.path)))
            .chain(nvram.map(|path| (NVRAM.to_owned(), path.to_owned())))
            .collect();
        let then = recorded.images.iter().filter(|(_, path)| !live.iter().any(|(_, live)| live == *path));
        for (target, path) in then.map(|(target, path)| (target.clone(), path.clone())).collect::<Vec<_>>() {
            let chain = self.facts(&path, "qcow2");
            // One that is below the active image is held by the VM itself.
            let held = is_on && self.is_below(vm, &path);
            let disk = DiskImages { target: target.clone(), read_only: false, held, chain };
            for mut restriction in restrictions(&disk, is_on) {
                restriction.operations.retain(|operation| {
                    RestrictedOperation::REVERT.contains(operation) || *operation == RestrictedOperation::Delete
                });
                found.push(restriction);
            }
            found.extend(overwritten(&target, &path, &recorded.name));
            tables.push((target, self.entries(&path)));
        }
        for (target, path) in live {
            tables.push((target, self.entries(&path)));
        }
        let present: Vec<&str> = vm.disks.iter().map(|disk| disk.target.as_str()).collect();
        let (name, disks) = (recorded.name.as_str(), recorded.disks.as_slice());
        let has_memory = recorded.content == RecordedContent::DisksAndMemory;
        let present = present.as_slice();
        found.extend(of_snapshot(SnapshotImages { name, tables: &tables, disks, present, is_on, has_memory }));
        found
    }

    fn entries(&mut self, path: &Path) -> Vec<Entry> {
        match self.read(path) {
            Found::Image(image) => {
                let entries = image.tags.iter();
                let taken = |stamp: Stamp| (stamp.seconds, stamp.nanoseconds);
                entries
                    .map(|tag| Entry { id: tag.id.clone(), name: tag.name.clone(), taken: taken(tag.stamp) })
                    .collect()
            }
            Found::Gone(_) | Found::Unknown(_) => Vec::new(),
        }
    }

    fn is_below(&mut self, vm: &VmFacts, path: &Path) -> bool {
        let name = text(&resolved(path));
        let tops = vm.disks.iter().filter(|disk| disk.path.starts_with('/'));
        let tops: Vec<_> = tops.map(|disk| (PathBuf::from(&disk.path), disk.format.clone())).collect();
        tops.iter().any(|(top, format)| self.chain(top, format).iter().any(|link| link.names.contains(&name)))
    }

    /// The files that a VM reaches, and those that reverts change. `others` are those of its media, of the definition that its
    /// next start uses, and of volumes, each with its format.
    pub(super) fn uses<'a>(
        &mut self,
        vm: &VmFacts,
        recorded: impl IntoIterator<Item = &'a Recorded>,
        others: impl IntoIterator<Item = (PathBuf, String)>,
    ) -> Uses {
        let mut uses = Uses::default();
        for disk in vm.disks.iter().filter(|disk| disk.path.starts_with('/')) {
            let chain = self.chain(Path::new(&disk.path), &disk.format);
            uses.reached.extend(chain.iter().flat_map(Link::reached));
            if let Some(top) = chain.first().filter(|_| !disk.read_only) {
                uses.changed.extend(top.names.iter().map(|name| (name.clone(), disk.target.clone())));
            }
        }
        let mut reach: BTreeSet<(PathBuf, String)> = others.into_iter().collect();
        for one in recorded {
            let qcow2 = |path: &PathBuf| (path.clone(), "qcow2".to_owned());
            reach.extend(one.files.frozen.values().cloned());
            reach.extend(one.files.overlays.values().map(qcow2));
            reach.extend(one.files.memory.iter().map(|path| (path.clone(), "raw".to_owned())));
            for (target, path) in &one.images {
                reach.insert(qcow2(path));
                let names = self.chain(path, "qcow2").first().map(|link| link.names.clone()).unwrap_or_default();
                let changed = names.into_iter().filter(|name| !uses.changed.contains_key(name));
                let changed: BTreeMap<String, String> = changed.map(|name| (name, target.clone())).collect();
                if !changed.is_empty() {
                    let id = snapshot_core::ids::SnapshotId::of_name(&one.name);
                    uses.changed_by.entry(id).or_default().extend(changed);
                }
            }
        }
        for (path, format) in reach {
            uses.reached.extend(self.chain(&path, &format).iter().flat_map(Link::reached));
        }
        uses
    }

    fn facts(&mut self, path: &Path, format: &str) -> Vec<ImageFacts> {
        self.chain(path, format).iter().map(|link| link.facts.clone()).collect()
    }

    /// An image with all that is below it.
    fn chain(&mut self, path: &Path, format: &str) -> &[Link] {
        let key = (path.to_owned(), format.to_owned());
        if !self.chains.contains_key(&key) {
            let chain = self.follow_chain(path, format);
            self.chains.insert(key.clone(), chain);
        }
        self.chains.get(&key).map(Vec::as_slice).unwrap_or_default()
    }

    fn follow_chain(&mut self, path: &Path, format: &str) -> Vec<Link> {
        let (mut chain, mut next) = (Vec::new(), Some((path.to_owned(), Some(format.to_owned()))));
        while let Some((path, told)) = next.take() {
            // One more than is allowed says enough, and so does one that leads back to itself.
            if chain.len() > MAX_CHAIN {
                break;
            }
            let told = told.as_deref();
            if told == Some("qcow2") {
                let (mut link, below) = self.qcow2(&path);
                link.beyond = beyond::start(&path, "qcow2");
                chain.push(link);
                chain.extend(self.data_file(&path));
                match below {
                    Below::Nothing => {}
                    Below::File(path, format) => next = Some((resolved(&path), format)),
                    // It may be a local file that is named in a way of its own.
                    Below::Remote(name) => {
                        chain.push(Link { beyond: Some((path, "qcow2".to_owned())), ..remote(name) });
                    }
                }
            } else {
                let beyond = beyond::start(&path, told.unwrap_or_default());
                chain.push(Link { beyond, ..plain(&path, told.is_none()) });
            }
        }
        chain
    }

    fn qcow2(&mut self, path: &Path) -> (Link, Below) {
        let name = text(&resolved(path));
        match self.read(path) {
            Found::Image(image) => (link(path, name, image), below(path, image)),
            Found::Gone(why) => (without_file(path, Some(name), Content::Lost(why.clone())), Below::Nothing),
            Found::Unknown(why) => (without_file(path, Some(name), Content::Unreadable(why.clone())), Below::Nothing),
        }
    }

    /// The file that has the guest's data, where it is not in the image.
    fn data_file(&mut self, path: &Path) -> Option<Link> {
        let Found::Image(image) = self.read(path) else { return None };
        if image.features.incompatible & DATA_FILE == 0 {
            return None;
        }
        let name = image.features.data_file.clone().unwrap_or_default();
        match qcow2::local_path(&name).filter(|name| !name.is_empty()).and_then(|name| beside(path, &name)) {
            Some(path) => Some(plain(&resolved(&path), false)),
            None => Some(remote(name)),
        }
    }
}

/// What an image says is below it.
enum Below {
    Nothing,
    File(PathBuf, Option<String>),
    Remote(String),
}

fn beside(path: &Path, name: &str) -> Option<PathBuf> {
    Some(resolved(path).parent()?.join(name))
}

fn below(path: &Path, image: &Image) -> Below {
    let Some(backing) = &image.backing else { return Below::Nothing };
    let local = qcow2::local_path(&backing.name).filter(|_| libvirt_parses(&backing.name));
    match local.and_then(|name| beside(path, &name)) {
        Some(path) => Below::File(path, backing.format.clone()),
        None => Below::Remote(backing.name.clone()),
    }
}

/// Whether libvirt understands how a local backing file is named. Of options in JSON it has parsers for those of the file alone.
fn libvirt_parses(name: &str) -> bool {
    let Some(json) = name.strip_prefix("json:") else { return true };
    let options = serde_json::from_str::<serde_json::Value>(json).unwrap_or_default();
    let driver = options.get("driver").map(|driver| driver.as_str().unwrap_or_default());
    matches!(driver, None | Some("file" | "host_device" | "raw"))
}

fn names_of(name: String, file: &HostFile) -> Vec<String> {
    let (device, inode) = file.number;
    vec![name, format!("{device}:{inode}")]
}

fn link(path: &Path, name: String, image: &Image) -> Link {
    let content = Content::Qcow2 { features: image.features.clone(), snapshots: image.tags.len() };
    Link { facts: facts(path, content, &image.file), names: names_of(name, &image.file), beyond: None }
}

fn facts(path: &Path, content: Content, file: &HostFile) -> ImageFacts {
    ImageFacts {
        path: text(path),
        content,
        fixed: file.immutable || file.read_only,
        lockable: file.lockable,
        locked: file.locked,
        written: file.written,
    }
}

fn without_file(path: &Path, name: Option<String>, content: Content) -> Link {
    Link { facts: facts(path, content, &HostFile::default()), names: name.into_iter().collect(), beyond: None }
}

fn remote(name: String) -> Link {
    without_file(Path::new(&name), None, Content::Remote)
}

/// A file whose content is not looked at; where its format is not told, QEMU and libvirt look.
fn plain(path: &Path, untold: bool) -> Link {
    let name = text(&resolved(path));
    let file = match files::with(path, || HostFile::of(&qcow2::open(path)?)) {
        Ok(host) => host,
        // Devices are left to libvirt, and the agent may not be allowed to open them.
        Err(error) if path.starts_with("/dev") && error.kind() == io::ErrorKind::PermissionDenied => {
            return without_file(path, Some(name), Content::Plain);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return without_file(path, Some(name), Content::Lost("does not exist".to_owned()));
        }
        Err(error) => return without_file(path, Some(name), Content::Unreadable(error.to_string())),
    };
    let is_qcow2 = untold && qcow2::read(path).is_ok();
    let content = if is_qcow2 { Content::Untold } else { Content::Plain };
    Link { facts: facts(path, content, &file), names: names_of(name, &file), beyond: None }
}

/// What a revert would overwrite in an image that is no disk of the VM now, unless nothing was written to it since the snapshot. Nobody has given
/// that up: its disk was detached, or got another image.
fn overwritten(target: &str, path: &Path, snapshot: &str) -> Option<Restriction> {
    if matches!(qcow2::held(path, snapshot, snapshot), Ok(Held::Both)) {
        return None;
    }
    let message = format!(
        "image {} is no disk of the VM now, and was written to since the snapshot; a revert would overwrite that: give disk {target} this image \
         again, or copy the image and remove it",
        path.display()
    );
    Some(Restriction::new(RestrictedOperation::REVERT, Reason::ImageInUse, message).on_disk(target))
}
