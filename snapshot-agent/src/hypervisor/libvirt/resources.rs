//! Which of the resources that a definition names exist on this host now ([`snapshot_core::resources`]).
//!
//! A look asks for each once, whatever the number of snapshots that need it. Paths are looked at by `stat`, which needs no access to
//! the file. What this process cannot see, because its service manager hides it, is taken to exist where the definition of the present
//! names it as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::resources::Resource;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::{Error, Reason};
use virt::connect::Connect;
use virt::domain::Domain;
use virt_sys as sys;

use super::super::snapshot_xml::Recorded;
use super::super::{Failure, hardware_xml};
use super::link::Connection;
use super::{action, observe, volumes};
use crate::bounded::files;

/// Where a TPM is emulated by.
const SWTPM: [&str; 3] = ["/usr/bin/swtpm", "/usr/local/bin/swtpm", "/bin/swtpm"];
/// libvirt's flag for a list of USB devices.
const USB_DEVICES: u32 = 1 << 2;

/// What was found out by one look.
pub(super) struct Host<'a> {
    connect: &'a Connect,
    domain: &'a Domain,
    exist: BTreeMap<Resource, bool>,
    /// What the definition of the present needs; read once it matters.
    present: Option<BTreeSet<Resource>>,
}

impl<'a> Host<'a> {
    pub(super) fn new(connect: &'a Connect, domain: &'a Domain) -> Self {
        Self { connect, domain, exist: BTreeMap::new(), present: None }
    }

    /// The first of these that does not exist.
    fn missing<'b>(&mut self, needed: &'b BTreeSet<Resource>) -> Option<&'b Resource> {
        needed.iter().find(|resource| !self.exists(resource))
    }

    fn exists(&mut self, resource: &Resource) -> bool {
        if let Some(known) = self.exist.get(resource) {
            return *known;
        }
        let exists = self.look_for(resource).unwrap_or_else(|error| {
            tracing::debug!(%resource, %error, "a resource of the host is not found");
            false
        });
        self.exist.insert(resource.clone(), exists);
        exists
    }

    fn look_for(&mut self, resource: &Resource) -> Result<bool, virt::error::Error> {
        let connect = self.connect;
        Ok(match resource {
            Resource::Path(path) | Resource::Medium { path, .. } => {
                files::exists(Path::new(path)) || (is_hidden(Path::new(path)) && self.is_of_the_present(resource))
            }
            Resource::Network(name) => connect.lookup_network_by_name(name)?.is_active()?,
            Resource::Interface(name) => Path::new("/sys/class/net").join(name).exists(),
            Resource::NetworkFilter(name) => connect.lookup_nwfilter_by_name(name).is_ok(),
            Resource::Volume { pool, volume } => {
                let pool = connect.lookup_storage_pool_by_name(pool)?;
                if !pool.is_active()? {
                    return Ok(false);
                }
                let path = pool.lookup_storage_vol_by_name(volume)?.path()?;
                // A pool lists a file that was removed until it is refreshed.
                !path.starts_with('/') || files::exists(Path::new(&path)) || is_hidden(Path::new(&path))
            }
            Resource::Secret(uuid) => connect.lookup_secret_by_uuid_string(uuid).is_ok(),
            Resource::SecretUsage { kind, usage } => {
                let kind = match kind.as_str() {
                    "volume" => sys::VIR_SECRET_USAGE_TYPE_VOLUME,
                    "ceph" => sys::VIR_SECRET_USAGE_TYPE_CEPH,
                    "iscsi" => sys::VIR_SECRET_USAGE_TYPE_ISCSI,
                    "tls" => sys::VIR_SECRET_USAGE_TYPE_TLS,
                    "vtpm" => sys::VIR_SECRET_USAGE_TYPE_VTPM,
                    _ => return Ok(false),
                };
                connect.lookup_secret_by_usage(kind.try_into().unwrap_or_default(), usage).is_ok()
            }
            Resource::Pci(address) => Path::new("/sys/bus/pci/devices").join(address).exists(),
            Resource::Usb(id) => self.has_usb(id)?,
            Resource::Mediated(uuid) => !uuid.is_empty() && Path::new("/sys/bus/mdev/devices").join(uuid).exists(),
            Resource::ScsiHost(name) => {
                let host = name.strip_prefix("scsi_").unwrap_or(name);
                !host.is_empty() && Path::new("/sys/class/scsi_host").join(host).exists()
            }
            Resource::TpmEmulator => SWTPM.iter().any(|path| Path::new(path).exists()),
            Resource::Machine { emulator, arch, machine, hypervisor } => {
                // That of the present was started on this host, or is to be, whatever a snapshot says.
                self.is_of_the_present(resource)
                    || connect
                        .domain_capabilities(Some(emulator), Some(arch), Some(machine), Some(hypervisor), 0)
                        .is_ok()
            }
            Resource::NvramConversion { .. } => observe::versions_of(connect)?.convert_nvram(),
            Resource::Unknown(_) => false,
        })
    }

    fn has_usb(&self, id: &str) -> Result<bool, virt::error::Error> {
        let Some((vendor, product)) = id.split_once(':') else { return Ok(false) };
        for device in self.connect.list_all_node_devices(USB_DEVICES)? {
            let xml = device.xml_desc(0)?;
            if xml.contains(&format!("<vendor id='{vendor}'")) && xml.contains(&format!("<product id='{product}'")) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the definition of the present needs.
    fn present(&mut self) -> &BTreeSet<Resource> {
        let domain = self.domain;
        self.present.get_or_insert_with(|| {
            let xml = domain.xml_desc(0).ok();
            let element = xml.and_then(|xml| hardware_xml::read(&xml).ok().flatten());
            element.map(|domain| snapshot_core::resources::needed(&domain, &BTreeSet::new())).unwrap_or_default()
        })
    }

    /// What the formats of the UEFI variables and of their template make unavailable: this libvirt does not start the VM again, so no
    /// snapshot of it could be reverted to.
    pub(super) fn nvram_restriction(&mut self) -> Option<Restriction> {
        let is_conversion = |resource: &&Resource| matches!(resource, Resource::NvramConversion { .. });
        let conversion = self.present().iter().find(is_conversion)?.clone();
        let Resource::NvramConversion { from, to } = &conversion else { return None };
        let message = format!(
            "the UEFI variables of the VM are in {to} and their template is in {from}: libvirt on this host does not start such a VM, so \
             snapshots of it could not be reverted to: convert the template (qemu-img convert -O {to}) and name it in the definition, \
             with templateFormat='{to}'"
        );
        (!self.exists(&conversion))
            .then(|| Restriction::new(RestrictedOperation::CREATE, Reason::FeatureUnsupported, message))
    }

    fn is_of_the_present(&mut self, resource: &Resource) -> bool {
        let present = self.present();
        match resource {
            Resource::Machine { .. } => present.contains(resource),
            Resource::Path(path) | Resource::Medium { path, .. } => present.iter().any(|other| match other {
                Resource::Path(there) | Resource::Medium { path: there, .. } => there == path,
                _ => false,
            }),
            _ => false,
        }
    }

    /// What a resource that does not exist makes unavailable on the snapshots that need it.
    pub(super) fn restrictions(
        &mut self,
        recorded: &BTreeMap<SnapshotId, BTreeSet<Resource>>,
    ) -> BTreeMap<SnapshotId, Restriction> {
        let of = recorded.iter().filter_map(|(id, needed)| {
            // A volume comes first: without one there is less that can be done.
            let is_volume = |resource: &&Resource| matches!(resource, Resource::Volume { .. });
            let volume = needed.iter().filter(is_volume).find(|volume| !self.exists(volume));
            Some((id.clone(), restriction(id, volume.or_else(|| self.missing(needed))?)))
        });
        of.collect()
    }
}

/// libvirt's revert starts QEMU with the definition of then, or leaves the VM with it. In place nothing of it is needed.
fn restriction(id: &SnapshotId, missing: &Resource) -> Restriction {
    let reason = match missing {
        Resource::Medium { .. } => Reason::MediumMissing,
        _ => Reason::ResourceMissing,
    };
    let message = format!(
        "snapshot {id} needs {missing}, which does not exist on this host or is not visible to the agent: restore it, or delete the \
         snapshot"
    );
    let restriction = Restriction::new([RestrictedOperation::Revert], reason, message);
    match missing {
        Resource::Medium { target, .. } => restriction.on_disk(target),
        _ => restriction,
    }
}

/// The same for one snapshot, read anew.
pub(super) fn check(connection: &Connection, vm: VmId, id: &SnapshotId) -> Result<Recorded, Failure> {
    let (domain, snapshot) = action::snapshot(connection, vm, id)?;
    let recorded = volumes::parse_snapshot(&domain, &snapshot.xml_desc(0)?)?;
    let mut host = Host::new(connection.connect(), &domain);
    match host.missing(&recorded.resources) {
        Some(missing) => Err(Failure::Precondition(refusal(id, missing))),
        None => Ok(recorded),
    }
}

fn refusal(id: &SnapshotId, missing: &Resource) -> Error {
    restriction(id, missing).refusal().with("resource", missing.to_string())
}

/// Whether a path is where this process cannot see what other processes of the host do. systemd mounts something over such
/// directories: a directory without permissions, an empty one, or devices of its own.
fn is_hidden(path: &Path) -> bool {
    hidden().iter().any(|directory| path.starts_with(directory))
}

/// The directories that are hidden. Read when the first connection is prepared, which is before or after the process is sandboxed: it
/// needs only `stat`.
fn hidden() -> &'static [PathBuf] {
    static HIDDEN: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
        let is_closed = |directory: &&str| fs::metadata(directory).is_ok_and(|found| found.mode() & 0o777 == 0);
        let closed = ["/home", "/root", "/run/user", "/boot", "/var/log", "/var/spool"].into_iter().filter(is_closed);
        // The host's own has devices that a private one has not.
        let of_hosts = ["/dev/mem", "/dev/cpu_dma_latency", "/dev/loop-control", "/dev/kmsg", "/dev/net/tun"];
        let devices = (!of_hosts.iter().any(|device| Path::new(device).exists())).then_some("/dev");
        closed.chain(devices).map(PathBuf::from).collect()
    });
    &HIDDEN
}
