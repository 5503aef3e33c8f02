//! A domain's XML, as far as snapshots are concerned: <https://libvirt.org/formatdomain.html>.
//!
//! The same elements stand in a snapshot's XML, as the domain was when it was taken.

use std::path::PathBuf;

use serde::Deserialize;
use snapshot_core::vm::Nvram;

/// `<domain>`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Domain {
    /// The number of the run; absent when the machine is off.
    #[serde(rename = "@id")]
    pub(super) id: Option<u32>,
    pub(super) name: String,
    memory: Memory,
    os: Os,
    #[serde(default)]
    devices: Devices,
}

#[derive(Debug, Clone, Deserialize)]
struct Memory {
    #[serde(rename = "@unit")]
    unit: Option<String>,
    #[serde(rename = "$text")]
    value: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct Os {
    nvram: Option<NvramElement>,
}

#[derive(Debug, Clone, Deserialize)]
struct NvramElement {
    #[serde(rename = "@format")]
    format: Option<String>,
    #[serde(rename = "$text")]
    path: Option<String>,
    source: Option<Source>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Devices {
    #[serde(rename = "disk", default)]
    disks: Vec<DiskElement>,
    #[serde(rename = "channel", default)]
    channels: Vec<Channel>,
}

#[derive(Debug, Clone, Deserialize)]
struct Channel {
    target: Option<ChannelTarget>,
}

#[derive(Debug, Clone, Deserialize)]
struct ChannelTarget {
    #[serde(rename = "@name")]
    name: Option<String>,
    #[serde(rename = "@state")]
    state: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct DiskElement {
    #[serde(rename = "@type")]
    kind: Option<String>,
    #[serde(rename = "@device")]
    device: Option<String>,
    driver: Option<Driver>,
    source: Option<Source>,
    target: Target,
    alias: Option<Alias>,
    readonly: Option<serde::de::IgnoredAny>,
    #[serde(rename = "backingStore")]
    backing_store: Option<Box<BackingStore>>,
    /// What a job of libvirt's copies it to.
    mirror: Option<Box<BackingStore>>,
}

/// An image below that of a disk, where the definition names it: libvirt takes it instead of what the image says.
#[derive(Debug, Clone, Deserialize)]
struct BackingStore {
    format: Option<Driver>,
    source: Option<Source>,
    #[serde(rename = "backingStore")]
    backing_store: Option<Box<BackingStore>>,
}

impl BackingStore {
    /// The file of this one, and of those below, with their formats.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let path = self.source.as_ref().and_then(|source| source.file.clone().or_else(|| source.dev.clone()));
        let format = self.format.as_ref().and_then(|format| format.format.clone()).unwrap_or_default();
        let below = self.backing_store.iter().flat_map(|below| below.files());
        path.into_iter().map(|path| (path, format.clone())).chain(below).collect()
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Alias {
    #[serde(rename = "@name")]
    name: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Driver {
    #[serde(rename = "@type")]
    format: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Source {
    #[serde(rename = "@file")]
    file: Option<PathBuf>,
    #[serde(rename = "@dev")]
    dev: Option<PathBuf>,
    #[serde(rename = "@protocol")]
    protocol: Option<String>,
    #[serde(rename = "@pool")]
    pool: Option<String>,
    #[serde(rename = "@volume")]
    volume: Option<String>,
    #[serde(rename = "@startupPolicy")]
    startup_policy: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Target {
    #[serde(rename = "@dev")]
    dev: String,
}

/// A disk or a drive with its medium, as written in the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    /// The target, such as `vda`.
    pub(super) target: String,
    /// The image or block device; `None` for disks on the network.
    pub(super) path: Option<PathBuf>,
    /// The format, such as `qcow2`; for a disk on the network its protocol.
    pub(super) format: String,
    /// Whether the guest cannot write to it.
    pub(super) read_only: bool,
}

/// A disk of a machine that is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attached {
    /// The target, such as `vda`.
    pub(super) target: String,
    /// QEMU's name for the device, such as `virtio-disk0`.
    pub(super) device: String,
    /// The image that libvirt has it on.
    pub(super) path: PathBuf,
}

/// A medium in a removable drive: a file that has to exist when the machine starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Medium {
    /// The drive's target.
    pub(super) target: String,
    /// The file.
    pub(super) path: PathBuf,
}

/// A disk that is a volume whose path is not known: its pool is not active, or it is not in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unresolved {
    /// The disk's target.
    pub(super) target: String,
    /// The name of the pool.
    pub(super) pool: String,
    /// The name of the volume.
    pub(super) volume: String,
    /// Whether it is a medium in a drive.
    pub(super) is_removable: bool,
}

/// Reads a domain's XML.
pub(super) fn parse(xml: &str) -> Result<Domain, quick_xml::DeError> {
    quick_xml::de::from_str(xml)
}

impl Domain {
    /// RAM in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        // libvirt writes KiB whatever it was given; the others are what its documentation lists.
        let factor = match self.memory.unit.as_deref() {
            Some("b" | "bytes") => 1,
            Some("KB") => 1000,
            None | Some("k" | "KiB") => 1 << 10,
            Some("MB") => 1_000_000,
            Some("M" | "MiB") => 1 << 20,
            Some("GB") => 1_000_000_000,
            Some("G" | "GiB") => 1 << 30,
            Some("TB") => 1_000_000_000_000,
            Some("T" | "TiB") => 1 << 40,
            Some(_) => 1 << 10,
        };
        self.memory.value.saturating_mul(factor)
    }

    /// How UEFI variables are kept.
    pub(super) fn nvram(&self) -> Nvram {
        match &self.os.nvram {
            None => Nvram::Absent,
            Some(nvram) if nvram.format.as_deref() == Some("qcow2") => Nvram::Qcow2,
            Some(_) => Nvram::Raw,
        }
    }

    /// The file of UEFI variables that an internal snapshot includes.
    pub(super) fn qcow2_nvram(&self) -> Option<PathBuf> {
        let nvram = self.os.nvram.as_ref().filter(|_| self.nvram() == Nvram::Qcow2)?;
        let path = nvram.path.as_deref().map(|path| PathBuf::from(path.trim()));
        path.or_else(|| nvram.source.as_ref()?.file.clone())
    }

    /// The disks that snapshots are about, in the order of the definition. A floppy that the guest can write to is one:
    /// libvirt wants it in an internal snapshot like any other disk.
    pub(super) fn disks(&self) -> impl Iterator<Item = Disk> {
        self.devices.disks.iter().filter(|disk| !disk.is_removable()).map(DiskElement::disk)
    }

    /// Whether somebody in the guest has opened the guest agent's end of its channel, where the machine is on.
    pub(super) fn has_agent(&self) -> bool {
        self.devices.channels.iter().filter_map(|channel| channel.target.as_ref()).any(|target| {
            target.name.as_deref() == Some("org.qemu.guest_agent.0") && target.state.as_deref() == Some("connected")
        })
    }

    /// Whether it has a channel to a guest agent.
    pub(super) fn has_agent_channel(&self) -> bool {
        let mut targets = self.devices.channels.iter().filter_map(|channel| channel.target.as_ref());
        targets.any(|target| target.name.as_deref() == Some("org.qemu.guest_agent.0"))
    }

    /// Its disks in files, where the machine is on.
    pub(super) fn attached(&self) -> impl Iterator<Item = Attached> {
        self.devices.disks.iter().filter(|disk| !disk.is_removable()).filter_map(|element| {
            let disk = element.disk();
            Some(Attached { target: disk.target, device: element.alias.as_ref()?.name.clone(), path: disk.path? })
        })
    }

    /// The files and formats of its disks.
    pub(super) fn files(&self) -> Vec<(PathBuf, String)> {
        self.disks().filter_map(|disk| Some((disk.path?, disk.format))).collect()
    }

    /// The files and formats of its disks, of the images below that the definition names, and of copies in the making.
    pub(super) fn all_files(&self) -> Vec<(PathBuf, String)> {
        let named = self.devices.disks.iter().flat_map(|disk| disk.backing_store.iter().chain(&disk.mirror));
        self.files().into_iter().chain(named.flat_map(|image| image.files())).collect()
    }

    /// Gives each disk and medium that is a volume of a pool the path of the volume. The targets of those that have none now.
    pub(super) fn resolve(&mut self, path: impl Fn(&str, &str) -> Option<PathBuf>) -> Vec<Unresolved> {
        let mut unresolved = Vec::new();
        for disk in self.devices.disks.iter_mut().filter(|disk| disk.kind.as_deref() == Some("volume")) {
            let is_removable = disk.is_removable();
            let Some(source) = &mut disk.source else { continue };
            let (Some(pool), Some(volume)) = (&source.pool, &source.volume) else { continue };
            source.file = path(pool, volume);
            let is_optional = matches!(source.startup_policy.as_deref(), Some("optional" | "requisite"));
            if source.file.is_none() && !is_optional {
                let (pool, volume) = (pool.clone(), volume.clone());
                unresolved.push(Unresolved { target: disk.target.dev.clone(), pool, volume, is_removable });
            }
        }
        unresolved
    }

    /// The pools, names and formats of disks that are volumes of a pool.
    pub(super) fn volumes(&self) -> impl Iterator<Item = (&str, &str, String)> {
        self.devices.disks.iter().filter_map(|disk| {
            let source = disk.source.as_ref()?;
            Some((source.pool.as_deref()?, source.volume.as_deref()?, disk.disk().format))
        })
    }

    /// The media without which the machine does not start.
    pub(super) fn media(&self) -> impl Iterator<Item = Medium> {
        self.devices.disks.iter().filter(|disk| disk.is_removable()).filter_map(DiskElement::needed_medium)
    }
}

impl DiskElement {
    fn is_removable(&self) -> bool {
        match self.device.as_deref() {
            Some("cdrom") => true,
            Some("floppy") => self.readonly.is_some() || self.source.is_none(),
            _ => false,
        }
    }

    fn disk(&self) -> Disk {
        let source = self.source.as_ref();
        let format = match source.and_then(|source| source.protocol.clone()) {
            Some(protocol) => protocol,
            None => self.driver.as_ref().and_then(|driver| driver.format.clone()).unwrap_or_else(|| "raw".to_owned()),
        };
        Disk {
            target: self.target.dev.clone(),
            path: source.and_then(|source| source.file.clone().or_else(|| source.dev.clone())),
            format,
            read_only: self.readonly.is_some(),
        }
    }

    /// libvirt drops a missing medium by itself where the policy says so.
    fn needed_medium(&self) -> Option<Medium> {
        let source = self.source.as_ref().filter(|_| self.kind.as_deref() == Some("file"))?;
        if matches!(source.startup_policy.as_deref(), Some("optional" | "requisite")) {
            return None;
        }
        Some(Medium { target: self.target.dev.clone(), path: source.file.clone()? })
    }
}

#[cfg(test)]
mod tests;
