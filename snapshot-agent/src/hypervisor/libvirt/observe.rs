//! Looking at machines.
//!
//! A look is six quick calls, one more for each snapshot that has to be read again and, while the machine runs, for each
//! disk ([`ask`]); then, without a connection, the images themselves are read ([`Told::examine`]): storage that hangs holds up no
//! call. Which calls those are is chosen by what they cost: none asks QEMU.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::layers::Layers;
use snapshot_core::restriction::Restriction;
use snapshot_core::snapshot::{SnapshotFacts, Storage};
use snapshot_core::vm::{Nvram, OrphanSummary, VmFacts, VmState};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt_sys as sys;

use super::super::images::{Images, missing_medium};
use super::super::snapshot_xml::Recorded;
use super::super::{Failure, Observed, Outline, PausedBy, Reread, Versions, definition, domain_xml, overlays};
use super::activity::{busy_disk, state};
use super::link::Connection;
use super::resources::Host;
use super::written::Written;
use super::{reached, volumes};
use crate::bounded::{Doing, jobs};

/// How often a machine that starts or stops meanwhile is looked at again.
const TRIES: u32 = 3;

pub(super) fn vms(connection: &Connection) -> Result<Vec<VmId>, Failure> {
    let domains = connection.connect().list_all_domains(0)?;
    domains.iter().map(|domain| Ok(VmId::from_uuid(domain.uuid()?))).collect()
}

pub(super) fn outline(connection: &Connection, vm: VmId) -> Result<Outline, Failure> {
    let domain = connection.domain(vm)?;
    let snapshots = domain.list_all_snapshots(0)?;
    let current = current(&domain, &snapshots)?;
    let names = snapshots.iter().map(DomainSnapshot::name).collect::<Result<_, _>>()?;
    Ok(Outline { snapshots: names, current })
}

fn current(domain: &Domain, snapshots: &[DomainSnapshot]) -> Result<Option<String>, Failure> {
    if snapshots.is_empty() { Ok(None) } else { current_name(domain) }
}

/// The snapshot that is current. libvirt answers with an error where none is.
pub(super) fn current_name(domain: &Domain) -> Result<Option<String>, Failure> {
    match domain.current_snapshot(0).and_then(|snapshot| snapshot.name()) {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_SNAPSHOT => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What libvirt tells of a machine; its images are not read yet.
pub(super) struct Told {
    vm: VmId,
    moment: Moment,
    persistent: bool,
    has_managed_save: bool,
    /// The files that it uses beside its disks.
    others: Vec<(PathBuf, String)>,
    checkpoints: Option<Restriction>,
    /// What a template of the UEFI variables makes unavailable.
    variables: Option<Restriction>,
    listed: Listed,
}

pub(super) fn ask(connection: &Connection, vm: VmId, written: &Written, reread: Reread<'_>) -> Result<Told, Failure> {
    let domain = connection.domain(vm)?;
    let moment = Moment::of(&domain)?;
    let (persistent, has_managed_save) = (domain.is_persistent()?, domain.has_managed_save(0)?);
    let is_on = moment.xml.id.is_some();
    let others = reached::others(&domain, &moment.xml, persistent)?;
    let checkpoints = reached::checkpoints(&domain, is_on)?;
    let connect = connection.connect();
    let variables = match moment.xml.nvram() {
        Nvram::Absent => None,
        Nvram::Raw | Nvram::Qcow2 => Host::new(connect, &domain).nvram_restriction(),
    };
    let listed = Listed::of((connect, &domain), vm, is_on && persistent, written, reread)?;
    Ok(Told { vm, moment, persistent, has_managed_save, others, checkpoints, variables, listed })
}

impl Told {
    /// libvirt's name of the machine, and what it does.
    pub(super) fn name_and_state(&self) -> (String, VmState) {
        (self.moment.xml.name.clone(), self.moment.state)
    }

    /// Reads the images.
    pub(super) fn examine(self) -> Observed {
        let (moment, mut images) = (self.moment, Images::default());
        let xml = &moment.xml;
        let mut facts = VmFacts {
            id: self.vm,
            name: xml.name.clone(),
            state: moment.state,
            persistent: self.persistent,
            has_managed_save: self.has_managed_save,
            memory_bytes: xml.memory_bytes(),
            nvram: xml.nvram(),
            missing_medium: missing_medium(&xml.media().collect::<Vec<_>>()),
            orphans: OrphanSummary::default(),
            restrictions: moment.restrictions,
            disks: xml.disks().map(|disk| images.disk(disk)).collect(),
            block_job_disk: moment.busy_disk,
        };
        let nvram = xml.qcow2_nvram();
        facts.restrictions.extend(self.checkpoints.into_iter().chain(self.variables));
        let found = self.listed.examine(&facts, (&mut images, nvram.as_deref()));
        let uses = images.uses(&facts, found.recorded.values(), self.others);
        let defined = facts.restrictions.clone();
        facts.restrictions.extend(images.restrictions(&facts, nvram.as_deref()));
        Observed {
            vm: facts,
            snapshots: found.facts,
            layers: found.layers,
            instance: xml.id,
            paused_by: moment.paused_by,
            strays: found.strays,
            images: images.contents(),
            nvram,
            uses,
            defined,
        }
    }
}

/// What libvirt tells of a machine that was looked at before.
pub(super) struct ToldAgain {
    before: Observed,
    state: VmState,
    paused_by: Option<PausedBy>,
    listed: Listed,
}

pub(super) fn ask_again(connection: &Connection, before: &Observed, written: &Written) -> Result<ToldAgain, Failure> {
    let domain = connection.domain(before.vm.id)?;
    let (state, paused_by) = state(&domain)?;
    let has_two_definitions = before.instance.is_some() && before.vm.persistent;
    let connect = connection.connect();
    let listed = Listed::of((connect, &domain), before.vm.id, has_two_definitions, written, Reread::New)?;
    Ok(ToldAgain { before: before.clone(), state, paused_by, listed })
}

impl ToldAgain {
    /// libvirt's name of the machine, and what it does.
    pub(super) fn name_and_state(&self) -> (String, VmState) {
        (self.before.vm.name.clone(), self.state)
    }

    /// Reads the images.
    pub(super) fn examine(self) -> Observed {
        let (before, mut images) = (self.before, Images::default());
        let mut vm = VmFacts { state: self.state, restrictions: before.defined.clone(), ..before.vm.clone() };
        vm.disks.iter_mut().for_each(|disk| images.refresh(disk));
        let nvram = before.nvram.as_deref();
        let found = self.listed.examine(&vm, (&mut images, nvram));
        vm.restrictions.extend(images.restrictions(&vm, nvram));
        Observed {
            vm,
            snapshots: found.facts,
            layers: found.layers,
            paused_by: self.paused_by,
            strays: found.strays,
            images: images.contents(),
            ..before
        }
    }
}

/// What there is of snapshots.
struct Found {
    /// As they are listed.
    facts: Vec<SnapshotFacts>,
    /// As they are written, deleted ones included.
    recorded: BTreeMap<String, Recorded>,
    /// The files of external ones.
    layers: Layers,
    /// The names of those that are in the images alone.
    strays: BTreeSet<String>,
}

/// What libvirt lists of a machine's snapshots.
struct Listed {
    recorded: BTreeMap<String, Recorded>,
    current: Option<String>,
    /// The files of the definition that the next start uses, where that may be another one.
    next_start: Vec<(PathBuf, String)>,
    /// What resources that do not exist on the host make unavailable.
    missing: BTreeMap<SnapshotId, Restriction>,
}

impl Listed {
    fn of(
        (connect, domain): (&Connect, &Domain),
        vm: VmId,
        has_two_definitions: bool,
        written: &Written,
        reread: Reread<'_>,
    ) -> Result<Self, Failure> {
        let (recorded, current) = recorded(domain, vm, written, reread)?;
        let has_external = recorded.values().any(|one| one.storage == Storage::External);
        // Where the machine runs, the next start may be told of other disks. It matters only where files may be removed.
        let next_start = match has_external && has_two_definitions {
            true => volumes::parse(domain, &domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?)?.files(),
            false => Vec::new(),
        };
        let needed = recorded.values().map(|one| (SnapshotId::of_name(&one.name), one.resources.clone())).collect();
        let missing = Host::new(connect, domain).restrictions(&needed);
        Ok(Self { recorded, current, next_start, missing })
    }

    /// Reads their images.
    fn examine(self, vm: &VmFacts, (images, nvram): (&mut Images, Option<&Path>)) -> Found {
        let Self { recorded, current, next_start, mut missing } = self;
        let names: BTreeSet<String> = recorded.keys().cloned().collect();
        let live = vm.disks.iter().map(|disk| (disk.target.as_str(), disk.path.as_str(), disk.format.as_str()));
        let layers = overlays::layers(images, live, next_start, &recorded, current.as_deref());
        let (listed, current) = overlays::without_deleted(&recorded, current);
        let facts = listed.into_iter().map(|recorded| {
            let is_current = current.as_ref() == Some(&recorded.name);
            let restrictions = images.of_snapshot(&recorded, vm, nvram);
            let mut facts = images.snapshot(recorded, is_current);
            facts.restrictions.extend(restrictions);
            facts.restrictions.extend(missing.remove(&facts.id));
            facts
        });
        let facts: Vec<SnapshotFacts> = facts.collect();
        let strays = images.strays(&vm.disks, &names);
        Found { facts, recorded, layers, strays }
    }
}

/// What is written about each snapshot, and which is current.
fn recorded(
    domain: &Domain,
    vm: VmId,
    written: &Written,
    reread: Reread<'_>,
) -> Result<(BTreeMap<String, Recorded>, Option<String>), Failure> {
    let listed = domain.list_all_snapshots(0)?;
    let current = current(domain, &listed)?;
    let names = listed.iter().map(DomainSnapshot::name).collect::<Result<Vec<_>, _>>()?;
    let mut known = written.known(vm, &names.iter().cloned().collect(), reread);
    for (snapshot, name) in listed.iter().zip(names) {
        if known.snapshots.contains_key(&name) {
            continue;
        }
        // Each of many is a call of its own.
        jobs::doing(Doing::Libvirt("observe"));
        match snapshot.xml_desc(0) {
            Ok(xml) => drop(known.snapshots.insert(name, volumes::parse_snapshot(domain, &xml)?)),
            // Deleted by somebody else since it was listed.
            Err(error) if error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_SNAPSHOT => {}
            Err(error) => return Err(error.into()),
        }
    }
    written.remember(vm, &known);
    Ok((known.snapshots, current))
}

/// A machine at one moment: what takes several calls to read, and has to fit together.
struct Moment {
    state: VmState,
    paused_by: Option<PausedBy>,
    xml: domain_xml::Domain,
    restrictions: Vec<Restriction>,
    busy_disk: Option<String>,
}

impl Moment {
    fn of(domain: &Domain) -> Result<Self, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            let told = domain.xml_desc(0)?;
            let (xml, unresolved) = volumes::parse_told(domain, &told)?;
            // While libvirt's daemon starts, this waits until it has found out what has become of the machine. So it
            // comes before the state, which would otherwise be the one from before the daemon stopped.
            let busy_disk = xml.id.and_then(|_| busy_disk(domain, &xml));
            let (state, paused_by) = state(domain)?;
            let fits = match state {
                VmState::Running | VmState::Paused | VmState::Suspended => xml.id.is_some(),
                VmState::Shutoff => xml.id.is_none(),
                VmState::Unknown | VmState::Crashed => true,
            };
            if fits || tries == TRIES {
                let mut restrictions = definition::restrictions(&told);
                restrictions.extend(volumes::restrictions(&unresolved));
                return Ok(Self { state, paused_by, xml, restrictions, busy_disk });
            }
        }
    }
}

pub(super) fn versions(connection: &Connection) -> Result<Versions, Failure> {
    Ok(versions_of(connection.connect())?)
}

pub(super) fn versions_of(connect: &Connect) -> Result<Versions, virt::error::Error> {
    let dotted = |version: u32| format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000);
    Ok(Versions { libvirt: dotted(connect.lib_version()?), qemu: dotted(connect.hyp_version()?) })
}
