//! Setting a guest's clock. Measured: after every revert to a running state it shows the time of the snapshot, also where a guest
//! agent is connected.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use snapshot_core::ids::VmId;
use snapshot_core::{Error, Reason};
use virt::domain::Domain;
use virt_sys as sys;

use super::super::{Failure, domain_xml};
use super::freeze::{forget_timeout, has_agent, is_unsupported, set_timeout};
use super::link::{Connection, Link};

/// Seconds within which the guest agent answers.
const ANSWERS_WITHIN: i32 = 5;
/// How long a guest agent may take to be connected again after QEMU was started anew, and how often that is looked at.
const CONNECTS_WITHIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Sets it to the host's time. Of a guest without an agent this is refused at once.
pub(super) fn set(actions: &Link, vm: VmId) -> Result<(), Failure> {
    let since = Instant::now();
    loop {
        let attempt = actions.act("set_time", |connection| try_to_set(connection, vm));
        match attempt {
            Err(Failure::Precondition(error))
                if error.reason() == Reason::GuestAgentSilent && since.elapsed() < CONNECTS_WITHIN =>
            {
                thread::sleep(LOOK_EVERY);
            }
            attempt => return attempt,
        }
    }
}

fn try_to_set(connection: &Connection, vm: VmId) -> Result<(), Failure> {
    let domain = connection.domain(vm)?;
    let refuse = |reason, message: &str| Err(Failure::Precondition(Error::new(reason, message)));
    if !has_channel(&domain)? {
        return refuse(Reason::GuestAgentAbsent, "the VM has no channel to a guest agent");
    }
    if !has_agent(&domain) {
        return refuse(Reason::GuestAgentSilent, "no guest agent is connected");
    }
    set_timeout(&domain, ANSWERS_WITHIN)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    // SAFETY: the domain is valid as long as the reference.
    let set = unsafe { sys::virDomainSetTime(domain.as_ptr(), seconds, now.subsec_nanos(), 0) };
    let error = (set < 0).then(virt::error::Error::last_error);
    forget_timeout(&domain);
    match error {
        None => Ok(()),
        Some(error) if is_unsupported(&error) => {
            refuse(Reason::GuestAgentAbsent, "the VM's guest agent cannot set the clock")
        }
        Some(error) => Err(error.into()),
    }
}

fn has_channel(domain: &Domain) -> Result<bool, Failure> {
    Ok(domain_xml::parse(&domain.xml_desc(0)?)?.has_agent_channel())
}
