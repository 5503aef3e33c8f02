//! What a domain does at a moment: its state, why it is paused, and whether a block job runs on one of its disks.

use std::ffi::{CString, c_int};

use snapshot_core::vm::VmState;
use virt::domain::Domain;
use virt::error::Error;
use virt_sys as sys;

use super::super::{PausedBy, domain_xml};

/// The state of a domain, and why it is paused. `virt`'s own wrapper takes an error for an unknown state.
pub(super) fn state(domain: &Domain) -> Result<(VmState, Option<PausedBy>), Error> {
    let (mut state, mut reason): (c_int, c_int) = (-1, -1);
    // SAFETY: the domain is valid as long as the reference, and both places outlive the call.
    if unsafe { sys::virDomainGetState(domain.as_ptr(), &mut state, &mut reason, 0) } < 0 {
        return Err(Error::last_error());
    }
    let vm_state = vm_state(u32::try_from(state).unwrap_or(u32::MAX));
    let paused_by = paused_by(u32::try_from(reason).unwrap_or(u32::MAX));
    Ok((vm_state, (vm_state == VmState::Paused).then_some(paused_by)))
}

fn vm_state(state: u32) -> VmState {
    match state {
        // Blocked on a resource, or asked to shut down and still there: the guest runs.
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED | sys::VIR_DOMAIN_SHUTDOWN => VmState::Running,
        sys::VIR_DOMAIN_PAUSED => VmState::Paused,
        sys::VIR_DOMAIN_SHUTOFF => VmState::Shutoff,
        sys::VIR_DOMAIN_CRASHED => VmState::Crashed,
        sys::VIR_DOMAIN_PMSUSPENDED => VmState::Suspended,
        _ => VmState::Unknown,
    }
}

/// By libvirt's reason (`virDomainPausedReason`). libvirt pauses with SAVE for an internal snapshot with memory and with
/// SNAPSHOT for an external one. UNKNOWN is what it says of a guest that it found paused when its daemon was started: that may
/// be a snapshot that was interrupted, or anything else, so it counts like a pause by a user. A guest that was paused by a
/// migration may run on another host by now, and must not run here too.
fn paused_by(reason: u32) -> PausedBy {
    match reason {
        sys::VIR_DOMAIN_PAUSED_SAVE | sys::VIR_DOMAIN_PAUSED_SNAPSHOT => PausedBy::Snapshot,
        sys::VIR_DOMAIN_PAUSED_USER | sys::VIR_DOMAIN_PAUSED_UNKNOWN => PausedBy::Somebody,
        _ => PausedBy::Something,
    }
}

/// The target of the first disk with a block job, or of the first about which libvirt does not answer. libvirt answers from what
/// it remembers.
pub(super) fn busy_disk(domain: &Domain, xml: &domain_xml::Domain) -> Option<String> {
    xml.disks().map(|disk| disk.target).find(|target| {
        let Ok(disk) = CString::new(target.as_str()) else { return true };
        let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
        // SAFETY: the domain is valid as long as the reference, and the string and the place outlive the call.
        let answer = unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) };
        let error = (answer < 0).then(Error::last_error);
        if let Some(error) = &error {
            tracing::debug!(%error, target, "whether a block job runs on a disk is not known");
        }
        is_busy(answer, error.map(|error| error.code().to_raw()))
    })
}

/// Whether an answer to a question for a block job means that there may be one. A domain that has stopped has none; any other
/// failure says nothing, and counts as a job.
fn is_busy(answer: c_int, error: Option<u32>) -> bool {
    match answer {
        0 => false,
        1.. => true,
        _ => !matches!(error, Some(sys::VIR_ERR_OPERATION_INVALID | sys::VIR_ERR_NO_DOMAIN)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_question_for_a_block_job_counts_as_a_job() {
        assert!(!is_busy(0, None));
        assert!(is_busy(1, None));
        assert!(!is_busy(-1, Some(sys::VIR_ERR_OPERATION_INVALID)), "the domain has stopped");
        for code in [sys::VIR_ERR_OPERATION_TIMEOUT, sys::VIR_ERR_INVALID_ARG, sys::VIR_ERR_INTERNAL_ERROR] {
            assert!(is_busy(-1, Some(code)), "{code}");
        }
        assert!(is_busy(-1, None));
    }

    #[test]
    fn only_pauses_that_a_snapshot_makes_are_a_snapshots() {
        for reason in 0..=20 {
            let expected = match reason {
                sys::VIR_DOMAIN_PAUSED_SAVE | sys::VIR_DOMAIN_PAUSED_SNAPSHOT => PausedBy::Snapshot,
                sys::VIR_DOMAIN_PAUSED_USER | sys::VIR_DOMAIN_PAUSED_UNKNOWN => PausedBy::Somebody,
                _ => PausedBy::Something,
            };
            assert_eq!(paused_by(reason), expected, "{reason}");
        }
        assert_eq!(paused_by(sys::VIR_DOMAIN_PAUSED_MIGRATION), PausedBy::Something);
        assert_eq!(paused_by(sys::VIR_DOMAIN_PAUSED_POSTCOPY), PausedBy::Something);
    }
}
