//! Freezing a guest's file systems, and not leaving them frozen.
//!
//! 1. The guest agent has [`ANSWERS_WITHIN`] to say that they are frozen. libvirt by itself waits without end for an agent
//!    that hangs after its first word, and meanwhile lets nobody speak to it, not even to have it thaw.
//! 2. From then on a second thread looks at the clock. After [`FROZEN_AT_MOST`] it thaws, whatever the first one waits for:
//!    a desktop that stands still is worse than a snapshot that has to be taken again.
//! 3. In the end they are thawed in any case.
//!
//! Who asks for a freeze gets nothing that was taken without it: what may have been taken after the thaw is a failure, and
//! so is an agent that did not answer in time. Such an agent may freeze later, and a thaw can fail because libvirt's daemon is
//! away; then the caller has it thawed ([`thaw`]) until that is answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use snapshot_core::ids::VmId;
use snapshot_core::{Error, Reason};
use virt::domain::Domain;
use virt_sys as sys;

use super::super::{Failure, domain_xml};
use super::link::{Connection, Link};

/// How long the guest agent may take to freeze or to thaw, in seconds. Before it freezes it writes down what is not on the
/// disks yet, and runs what the administrator of the guest has told it to.
const ANSWERS_WITHIN: i32 = 30;
/// The longest that a guest's file systems stay frozen.
const FROZEN_AT_MOST: Duration = Duration::from_secs(10);
/// How long after a thaw that failed it is tried again.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// A guest whose file systems are frozen.
pub(super) struct Frozen<'a> {
    actions: &'a Link,
    looks: &'a Link,
    vm: VmId,
    since: Instant,
}

impl<'a> Frozen<'a> {
    /// Freezes them. [`Failure::Precondition`] says that nothing is frozen, nor will be.
    pub(super) fn begin(actions: &'a Link, looks: &'a Link, vm: VmId) -> Result<Self, Failure> {
        actions.act("freeze", |connection| freeze(connection, vm))?;
        Ok(Self { actions, looks, vm, since: Instant::now() })
    }

    /// Does something while they are frozen, and thaws them.
    pub(super) fn during(self, act: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let (done, expired, thawed) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
        let acted = thread::scope(|scope| {
            let watching = scope.spawn(|| {
                while !done.load(Ordering::Acquire) && !thawed.load(Ordering::Acquire) {
                    if self.since.elapsed() > FROZEN_AT_MOST {
                        // Before it is tried: one that fails may have thawed them all the same.
                        expired.store(true, Ordering::Release);
                        tracing::warn!("the guest was frozen for as long as it may be; thawing it");
                        thawed.store(self.thaw(self.looks).is_ok(), Ordering::Release);
                    }
                    let left = FROZEN_AT_MOST.saturating_sub(self.since.elapsed());
                    thread::park_timeout(left.max(TRY_EVERY));
                }
            });
            let acted = act();
            done.store(true, Ordering::Release);
            watching.thread().unpark();
            acted
        });
        let ended = if thawed.into_inner() { Ok(()) } else { self.thaw(self.actions) };
        if acted.is_ok() && expired.into_inner() {
            let message =
                "the guest's file systems were thawed before the snapshot was taken, because that took too long";
            return Err(Failure::FreezeLost(Error::new(Reason::GuestThawed, message)));
        }
        acted.and(ended)
    }

    fn thaw(&self, link: &Link) -> Result<(), Failure> {
        let thawed = link.look("thaw", |connection| thaw(connection, self.vm));
        if let Err(failure) = &thawed {
            tracing::warn!(%failure, "the guest's file systems could not be thawed");
        }
        thawed
    }
}

fn freeze(connection: &Connection, vm: VmId) -> Result<(), Failure> {
    let domain = connection.domain(vm)?;
    set_timeout(&domain, ANSWERS_WITHIN)?;
    // SAFETY: the domain is valid as long as the reference; no mount points means all of them.
    let frozen = unsafe { sys::virDomainFSFreeze(domain.as_ptr(), std::ptr::null_mut(), 0, 0) };
    let error = (frozen < 0).then(virt::error::Error::last_error);
    forget_timeout(&domain);
    let Some(error) = error else { return Ok(()) };
    let silent = "the guest agent does not answer";
    let named = |reason, message| Error::new(reason, message).with("libvirt_message", error.message());
    Err(match error.code().to_raw() {
        _ if is_unsupported(&error) => {
            let message = "the machine has no channel to a guest agent";
            Failure::Precondition(named(Reason::GuestAgentAbsent, message))
        }
        // Nobody in the guest has opened its end.
        sys::VIR_ERR_AGENT_UNRESPONSIVE if !has_agent(&domain) => {
            Failure::Precondition(named(Reason::GuestAgentSilent, silent).with("agent", "not connected"))
        }
        // It is greeted first, and was not asked for more when it does not answer that.
        sys::VIR_ERR_AGENT_UNRESPONSIVE => Failure::Precondition(named(Reason::GuestAgentSilent, silent)),
        sys::VIR_ERR_AGENT_COMMAND_TIMEOUT => Failure::FreezeLost(named(Reason::GuestAgentSilent, silent)),
        sys::VIR_ERR_AGENT_COMMAND_FAILED => {
            let message = "the guest's file systems cannot be frozen now";
            Failure::Precondition(named(Reason::GuestFrozen, message))
        }
        _ => error.into(),
    })
}

/// Whether somebody in the guest has opened the guest agent's end of its channel; where that cannot be told, it is asked.
pub(super) fn has_agent(domain: &Domain) -> bool {
    let xml = domain.xml_desc(0).ok().and_then(|xml| domain_xml::parse(&xml).ok());
    xml.is_none_or(|xml| xml.has_agent())
}

pub(super) fn is_unsupported(error: &virt::error::Error) -> bool {
    matches!(error.code().to_raw(), sys::VIR_ERR_ARGUMENT_UNSUPPORTED | sys::VIR_ERR_CONFIG_UNSUPPORTED)
}

/// Thaws a guest, if it is frozen.
pub(super) fn thaw(connection: &Connection, vm: VmId) -> Result<(), Failure> {
    let domain = connection.domain(vm)?;
    set_timeout(&domain, ANSWERS_WITHIN)?;
    // SAFETY: the domain is valid as long as the reference; no mount points means all of them.
    let thawed = unsafe { sys::virDomainFSThaw(domain.as_ptr(), std::ptr::null_mut(), 0, 0) };
    let error = (thawed < 0).then(virt::error::Error::last_error);
    forget_timeout(&domain);
    match error {
        None => Ok(()),
        // Without a channel to an agent nobody has frozen it.
        Some(error) if is_unsupported(&error) => Ok(()),
        Some(error) => Err(error.into()),
    }
}

/// How long libvirt waits for the guest agent's answers, in seconds, whoever asks it.
pub(super) fn set_timeout(domain: &Domain, seconds: i32) -> Result<(), Failure> {
    // SAFETY: the domain is valid as long as the reference.
    if unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) } < 0 {
        return Err(virt::error::Error::last_error().into());
    }
    Ok(())
}

/// What others ask of it, such as to trim its disks, may take longer: they wait as libvirt does by itself.
pub(super) fn forget_timeout(domain: &Domain) {
    if let Err(failure) = set_timeout(domain, sys::VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK) {
        tracing::debug!(%failure, "libvirt goes on giving up on the guest agent");
    }
}
