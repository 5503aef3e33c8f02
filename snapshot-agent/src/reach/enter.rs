//! Making the list hold for this process.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;

use landlock::CompatLevel;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::calls;
use super::landed::{Rules, confine_thread, is_whole};
use super::list::{Capability, Enforce, List, May};

/// Why the agent's reach cannot be narrowed.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// There is a second thread, which would keep all it has.
    #[error("the reach of this process cannot be narrowed: it has {0} threads already")]
    Threads(usize),
    /// The system refused a step.
    #[error("the reach of this process cannot be narrowed: {what}: {error}")]
    Io {
        /// The step.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The kernel's Landlock.
    #[error("the reach of this process cannot be narrowed by Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter of system calls.
    #[error("the system calls of this process cannot be narrowed: {0}")]
    Calls(#[from] seccompiler::Error),
    /// The configuration asks for what cannot be.
    #[error("reach.enforce is \"required\", and {0}")]
    Impossible(&'static str),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// All of it holds.
    Narrowed,
    /// The kernel's Landlock is too old for some of it, or not there.
    Partly,
    /// Nothing was done: it is switched off, or cannot be.
    Open,
}

impl Reached {
    /// Tells it in the metrics, once there are any.
    pub fn measure(self) {
        let value = match self {
            Self::Narrowed => 1.0,
            Self::Partly => 0.5,
            Self::Open => 0.0,
        };
        metrics::gauge!("snapshot_agent_reach_narrowed").set(value);
    }
}

/// Narrows this process to the list, for good. There must be no second thread.
pub fn enter(list: &List, enforce: Enforce) -> Result<Reached, ReachError> {
    let io = |what| move |error: io::Error| ReachError::Io { what, error };
    let errno = |what| move |error: rustix::io::Errno| ReachError::Io { what, error: error.into() };
    let level = match enforce {
        Enforce::Off => return Ok(Reached::Open),
        Enforce::BestEffort => CompatLevel::BestEffort,
        Enforce::Required => CompatLevel::HardRequirement,
    };
    let threads = fs::read_dir("/proc/self/task").map_err(io("counting its threads"))?.count();
    if threads != 1 {
        return Err(ReachError::Threads(threads));
    }
    for place in list.places.iter().filter(|place| !place.path.exists()) {
        match place.may {
            // Later it could not be made.
            May::Keep => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&place.path);
                made.map_err(io("making the folder of its state"))?;
            }
            May::Images | May::Shared => tracing::warn!(
                path = %place.path.display(),
                "a folder of images is not there; to be reached it has to be before the agent is started"
            ),
            May::List | May::Read | May::Run | May::Device => {}
        }
    }
    let programs = calls::programs()?;
    drop_capabilities(list).map_err(errno("dropping capabilities"))?;
    set_no_new_privs(true).map_err(errno("no_new_privs"))?;
    let rules = Rules {
        places: list.places.clone(),
        files: Vec::new(),
        ports: list.ports.clone(),
        connects: list.connects.clone(),
    };
    let status = confine_thread(&rules, level)?;
    for program in &programs {
        seccompiler::apply_filter(program)?;
    }
    Ok(if is_whole(&status) { Reached::Narrowed } else { Reached::Partly })
}

fn drop_capabilities(list: &List) -> rustix::io::Result<()> {
    let kept = list.capabilities.iter().map(|kept| match kept {
        Capability::DacOverride => CapabilitySet::DAC_OVERRIDE,
        Capability::Lease => CapabilitySet::LEASE,
        Capability::NetBindService => CapabilitySet::NET_BIND_SERVICE,
    });
    let kept = kept.fold(CapabilitySet::empty(), CapabilitySet::union);
    clear_ambient_capability_set()?;
    // The kernel knows fewer than there are bits, and says so from the first that it does not know.
    for one in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match capability_is_in_bounding_set(one) {
            Ok(true) if !kept.contains(one) => remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    // A service manager may have taken some away already.
    let has = rustix::thread::capabilities(None)?;
    let keeps = kept & has.permitted;
    set_capabilities(None, CapabilitySets { effective: keeps, permitted: keeps, inheritable: CapabilitySet::empty() })
}
