//! The list: a pure function of the configuration.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::Config;

/// Whether the agent's reach is narrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforce {
    /// The agent does not start where any of it cannot be had.
    Required,
    /// As far as the kernel can: one without Landlock, or with less of it, is warned of.
    #[default]
    BestEffort,
    /// Not at all.
    Off,
}

/// `[reach]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReachConfig {
    /// Whether it is narrowed.
    #[serde(default)]
    pub enforce: Enforce,
}

/// What may be done with a file, or with what is in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum May {
    /// See which names there are.
    List,
    /// Read.
    Read,
    /// Read, and run as a program.
    Run,
    /// Read and write a device.
    Device,
    /// Read, write, make, link, rename and remove files; make nothing that is no regular file.
    Images,
    /// The same, and make and remove directories: for the notes to other hosts.
    Shared,
    /// As images, and make folders.
    Keep,
}

/// A folder with all that is beneath it, or a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its path.
    pub path: PathBuf,
    /// What may be done there.
    pub may: May,
}

/// What of root's power is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Images belong to whom QEMU runs as, and nobody else may read or write them.
    DacOverride,
    /// A lease is how the kernel tells whether anybody has a file open, and is given for one's own files alone otherwise.
    Lease,
    /// To listen on a port below 1024, where one is configured.
    NetBindService,
}

/// All that the agent may touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Folders and files.
    pub places: BTreeSet<Place>,
    /// The TCP ports it may listen on.
    pub ports: BTreeSet<u16>,
    /// The TCP ports it may connect to: that of the collector of traces, where there is one.
    pub connects: BTreeSet<u16>,
    /// Capabilities.
    pub capabilities: BTreeSet<Capability>,
}

impl List {
    /// What an agent with this configuration needs.
    pub fn of(config: &Config) -> Self {
        let mut places = system();
        let mut add = |path: &Path, may| _ = places.insert(Place { path: path.to_owned(), may });
        // The journal, and what of ours is in images.
        add(&config.state_dir, May::Keep);
        config.image_dirs.iter().for_each(|dir| add(dir, May::Images));
        config.read_dirs.iter().for_each(|dir| add(dir, May::Read));
        // The notes for other hosts have a directory of their own beside images.
        config.shared_dirs.iter().for_each(|dir| add(dir, May::Shared));
        // libvirt's records of snapshots are watched and never read.
        config.snapshot_dir().iter().for_each(|dir| add(dir, May::List));
        // Read again while it runs, and replaced by others under the same name: so it is their folders.
        config.read_again().into_iter().filter_map(folder_of).for_each(|folder| add(folder, May::Read));
        // How a libvirt client begins: aliases of URIs, and the name of whom it runs as.
        for file in ["/etc/libvirt/libvirt.conf", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"] {
            add(Path::new(file), May::Read);
        }
        // Which file a loop device of another VM is over.
        add(Path::new("/sys/devices/virtual/block"), May::Read);
        // Which boot this is; it has to be read now and then.
        add(Path::new("/proc/sys/kernel/random/boot_id"), May::Read);
        let ports: BTreeSet<u16> =
            [Some(config.listen), config.metrics].into_iter().flatten().map(|at| at.port()).collect();
        let connects = config.telemetry.iter().map(|telemetry| telemetry.endpoint.port()).collect();
        let mut capabilities = BTreeSet::from([Capability::DacOverride, Capability::Lease]);
        if ports.iter().any(|port| (1..1024).contains(port)) {
            capabilities.insert(Capability::NetBindService);
        }
        Self { places, ports, connects, capabilities }
    }

    /// With the folders in which the keys and certificates really are, where what is configured are links to them.
    #[must_use]
    pub fn following_links(mut self, config: &Config) -> Self {
        for real in config.read_again().into_iter().filter_map(|file| file.canonicalize().ok()) {
            let folder = real.parent().map(Path::to_owned);
            self.places.extend(folder.map(|path| Place { path, may: May::Read }));
        }
        self
    }
}

/// A name alone is one in the folder that the process is in.
fn folder_of(file: &Path) -> Option<&Path> {
    file.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

/// What any program needs that is linked dynamically, and `qemu-img` is.
pub(crate) fn system() -> BTreeSet<Place> {
    let place = |may| move |path: &str| Place { path: PathBuf::from(path), may };
    let libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];
    let read = ["/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/gnutls", "/dev/urandom", "/dev/random"];
    // libnuma, which QEMU is linked with, and the C library count processors and memory.
    let hardware =
        ["/sys/devices/system/cpu", "/sys/devices/system/node", "/proc/sys/vm/max_map_count", "/proc/meminfo"];
    let loaders = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let reading = libraries.into_iter().chain(read).chain(hardware).map(place(May::Read));
    let running = loaders.into_iter().map(place(May::Run));
    let program = Place { path: crate::qemu_img::program().to_owned(), may: May::Run };
    reading.chain(running).chain([place(May::Device)("/dev/null"), program]).collect()
}

/// Why an agent that speaks to this libvirt cannot be narrowed; `None` when it can.
pub fn cannot_be_narrowed(libvirt_uri: &str) -> Option<&'static str> {
    let (scheme, rest) = libvirt_uri.split_once("://").unwrap_or((libvirt_uri, ""));
    let place = rest.split('?').next().unwrap_or_default();
    match (scheme, place) {
        ("qemu" | "qemu+unix", "/system") | ("test", _) => None,
        ("qemu", "/embed") => Some("with libvirt's embedded driver QEMU and libvirt run inside this process"),
        _ => Some("libvirt is reached by something else than the socket of this host's system daemon"),
    }
}

#[cfg(test)]
mod tests;
