//! Looking at machines.
//!
//! A look is six or seven quick calls, one more for each snapshot and, while the machine runs, for each disk; then the
//! images themselves are read. Which calls those are is chosen by what they cost: none of them asks QEMU.

use std::collections::BTreeSet;
use std::ffi::{CString, c_int};

use snapshot_core::ids::VmId;
use snapshot_core::vm::{VmFacts, VmState};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::error::Error;
use virt_sys as sys;

use super::super::images::{Images, missing_medium};
use super::super::{Failure, Observed, Outline, Versions, domain_xml, snapshot_xml};

/// How often a machine that starts or stops meanwhile is looked at again.
const TRIES: u32 = 3;

pub(super) fn vms(connection: &Connect) -> Result<Vec<VmId>, Failure> {
    let domains = connection.list_all_domains(0)?;
    domains.iter().map(|domain| Ok(VmId::from_uuid(domain.uuid()?))).collect()
}

pub(super) fn lookup(connection: &Connect, vm: VmId) -> Result<Domain, Failure> {
    Ok(connection.lookup_domain_by_uuid_string(&vm.to_string())?)
}

pub(super) fn outline(connection: &Connect, vm: VmId) -> Result<Outline, Failure> {
    let domain = lookup(connection, vm)?;
    let snapshots = domain.list_all_snapshots(0)?;
    let current = current(&domain, &snapshots)?;
    let names = snapshots.iter().map(DomainSnapshot::name).collect::<Result<_, _>>()?;
    Ok(Outline { snapshots: names, current })
}

/// libvirt answers with an error where none is current.
fn current(domain: &Domain, snapshots: &[DomainSnapshot]) -> Result<Option<String>, Failure> {
    if snapshots.is_empty() {
        return Ok(None);
    }
    match domain.current_snapshot(0).and_then(|snapshot| snapshot.name()) {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_SNAPSHOT => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn observe(connection: &Connect, vm: VmId) -> Result<Observed, Failure> {
    let domain = lookup(connection, vm)?;
    let mut tries = 0;
    let (state, left_paused, xml) = loop {
        tries += 1;
        let (state, left_paused) = state(&domain)?;
        let xml = domain_xml::parse(&domain.xml_desc(0)?)?;
        // The two calls have to be about the same moment; Unknown and Crashed may go with either.
        let agrees = match state {
            VmState::Running | VmState::Paused | VmState::Suspended => xml.id.is_some(),
            VmState::Shutoff => xml.id.is_none(),
            VmState::Unknown | VmState::Crashed => true,
        };
        if agrees || tries == TRIES {
            break (state, left_paused, xml);
        }
    };
    let mut images = Images::default();
    let facts = VmFacts {
        id: vm,
        name: xml.name.clone(),
        state,
        persistent: domain.is_persistent()?,
        has_managed_save: domain.has_managed_save(0)?,
        block_job_disk: xml.id.and_then(|_| busy_disk(&domain, &xml)),
        memory_bytes: xml.memory_bytes(),
        nvram: xml.nvram(),
        missing_medium: missing_medium(&xml.media().collect::<Vec<_>>()),
        disks: xml.disks().map(|disk| images.disk(disk)).collect(),
    };
    let listed = domain.list_all_snapshots(0)?;
    let current = current(&domain, &listed)?;
    let (mut snapshots, mut names) = (Vec::with_capacity(listed.len()), BTreeSet::new());
    for snapshot in &listed {
        let recorded = match snapshot.xml_desc(0) {
            Ok(xml) => snapshot_xml::parse(&xml)?,
            // Deleted by somebody else since it was listed.
            Err(error) if error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_SNAPSHOT => continue,
            Err(error) => return Err(error.into()),
        };
        names.insert(recorded.name.clone());
        let is_current = current.as_deref() == Some(&recorded.name);
        snapshots.extend(images.snapshot(recorded, is_current));
    }
    let strays = images.strays(&facts.disks, &names);
    Ok(Observed { vm: facts, snapshots, instance: xml.id, left_paused, strays })
}

/// What the machine does, and whether it was left paused. `virt`'s own wrapper takes an error for an unknown state.
fn state(domain: &Domain) -> Result<(VmState, bool), Error> {
    let (mut state, mut reason): (c_int, c_int) = (-1, -1);
    // SAFETY: the domain is valid as long as the reference, and both places outlive the call.
    if unsafe { sys::virDomainGetState(domain.as_ptr(), &mut state, &mut reason, 0) } < 0 {
        return Err(Error::last_error());
    }
    let vm_state = match u32::try_from(state).unwrap_or(u32::MAX) {
        // Blocked on a resource, or asked to shut down and still there: the guest runs.
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED | sys::VIR_DOMAIN_SHUTDOWN => VmState::Running,
        sys::VIR_DOMAIN_PAUSED => VmState::Paused,
        sys::VIR_DOMAIN_SHUTOFF => VmState::Shutoff,
        sys::VIR_DOMAIN_CRASHED => VmState::Crashed,
        sys::VIR_DOMAIN_PMSUSPENDED => VmState::Suspended,
        _ => VmState::Unknown,
    };
    // What QEMU or libvirt's daemon says of a machine whose snapshot was cut off; not USER, and none of the reasons for
    // which a guest must not run on.
    let by_a_snapshot = matches!(
        u32::try_from(reason),
        Ok(sys::VIR_DOMAIN_PAUSED_UNKNOWN
            | sys::VIR_DOMAIN_PAUSED_SAVE
            | sys::VIR_DOMAIN_PAUSED_SNAPSHOT
            | sys::VIR_DOMAIN_PAUSED_MIGRATION)
    );
    Ok((vm_state, vm_state == VmState::Paused && by_a_snapshot))
}

/// The target of the first disk with a block job. libvirt answers from what it remembers. A failure means that the
/// machine has stopped since, and block jobs with it.
fn busy_disk(domain: &Domain, xml: &domain_xml::Domain) -> Option<String> {
    xml.disks().map(|disk| disk.target).find(|target| {
        let Ok(disk) = CString::new(target.as_str()) else { return false };
        let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
        // SAFETY: the domain is valid as long as the reference, and the string and the place outlive the call.
        unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) == 1 }
    })
}

pub(super) fn versions(connection: &Connect) -> Result<Versions, Failure> {
    let dotted = |version: u32| format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000);
    Ok(Versions { libvirt: dotted(connection.lib_version()?), qemu: dotted(connection.hyp_version()?) })
}
