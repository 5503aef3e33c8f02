//! How much somebody may keep: a number of snapshots, and their bytes.
//!
//! Bytes are what a snapshot takes by itself from its first moment, which hosts tell (`SnapshotFacts::size_bytes`): the saved
//! running state above all. What its old blocks take as the guest overwrites them is not known by snapshot and not counted. For
//! one that is being taken as much counts as it can need at most: the machine's RAM where that is saved.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason};
use crate::operation::{Create, Request};
use crate::snapshot::Content;
use crate::vm::VmFacts;

/// The most that may be kept; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Snapshots.
    pub snapshots: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What is kept, with what is being taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Snapshots.
    pub snapshots: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Whose quota it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A user, `{issuer}/{subject}`.
    User(&'a str),
    /// A machine.
    Vm(crate::ids::VmId),
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => f.write_str(user),
            Self::Vm(vm) => write!(f, "vms/{vm}"),
        }
    }
}

/// Whether one more snapshot of so many bytes may be kept.
///
/// # Errors
/// QUOTA_EXCEEDED, with the metadata `quota` (which one, such as `bytes_per_user`), `limit`, `used`, and `user` or `vm`.
pub fn admit(owner: Owner<'_>, limits: Limits, usage: Usage, bytes: u64) -> Result<(), Error> {
    let (key, per) = match owner {
        Owner::User(_) => ("user", "user"),
        Owner::Vm(_) => ("vm", "vm"),
    };
    let refuse = |what: &str, limit: u64, used: u64, message: String| {
        Err(Error::new(Reason::QuotaExceeded, message)
            .with(key, owner.to_string())
            .with("quota", format!("{what}_per_{per}"))
            .with("limit", limit.to_string())
            .with("used", used.to_string()))
    };
    if limits.snapshots > 0 && usage.snapshots >= limits.snapshots {
        let (limit, used) = (limits.snapshots, usage.snapshots);
        return refuse("snapshots", limit, used, format!("{owner} has {used} snapshots, the most is {limit}"));
    }
    if limits.bytes > 0 && usage.bytes.saturating_add(bytes) > limits.bytes {
        let (limit, used) = (limits.bytes, usage.bytes);
        let message = format!(
            "the snapshots of {owner} take {} MiB, this one may need {} MiB, and the most is {} MiB",
            used >> 20,
            bytes >> 20,
            limit >> 20
        );
        return refuse("bytes", limit, used, message);
    }
    Ok(())
}

/// The snapshot that a request takes, be it only the one before a revert.
pub fn taken(request: &Request) -> Option<&Create> {
    match request {
        Request::Create(create) => Some(create),
        Request::Revert { save_current, .. } => save_current.as_ref(),
        Request::Update { .. } | Request::Delete { .. } | Request::Purge { .. } => None,
    }
}

/// The most bytes that a snapshot is going to need, by what is known of the machine.
pub fn expected_bytes(vm: &VmFacts, create: &Create) -> u64 {
    if vm.is_active() && create.content != Some(Content::Disks) { vm.memory_bytes } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_admitted_stays_within_the_limits(
            snapshots in 0..5u64, limit in 0..5u64, used in 0..100u64, bytes in 0..100u64, most in 0..100u64,
        ) {
            let limits = Limits { snapshots: limit, bytes: most };
            let usage = Usage { snapshots, bytes: used };
            let admitted = admit(Owner::User("ravada/alice"), limits, usage, bytes).is_ok();
            let fits = (limit == 0 || snapshots < limit) && (most == 0 || used + bytes <= most);
            prop_assert_eq!(admitted, fits);
        }
    }

    #[test]
    fn a_refusal_says_whose_limit_it_is_and_how_much() {
        let limits = Limits { snapshots: 2, bytes: 10 };
        let refusal = |usage, bytes| admit(Owner::User("ravada/alice"), limits, usage, bytes).unwrap_err();
        let full = refusal(Usage { snapshots: 2, bytes: 0 }, 0);
        assert_eq!(full.reason(), Reason::QuotaExceeded);
        let told = |error: &Error, key: &str| error.metadata()[key].clone();
        assert_eq!((told(&full, "quota"), told(&full, "limit")), ("snapshots_per_user".into(), "2".into()));
        assert_eq!((told(&full, "user"), told(&full, "used")), ("ravada/alice".into(), "2".into()));
        let large = refusal(Usage { snapshots: 1, bytes: 8 }, 3);
        assert_eq!(told(&large, "quota"), "bytes_per_user");
        let huge = admit(Owner::User("a"), limits, Usage { snapshots: 0, bytes: u64::MAX }, u64::MAX);
        assert!(huge.is_err(), "no overflow");
    }

    /// Both a create and the snapshot before a revert are counted, by what they may save.
    #[test]
    fn what_a_request_takes_and_may_need() {
        use crate::plan::tests::{create, vm};
        use crate::vm::VmState::{Paused, Running, Shutoff};

        let snapshot = create(None).snapshot;
        let revert = |save_current| Request::Revert {
            snapshot: snapshot.clone(),
            run_after: crate::operation::RunAfter::AsRecorded,
            save_current,
        };
        assert_eq!(taken(&Request::Create(create(None))), Some(&create(None)));
        assert_eq!(taken(&revert(Some(create(None)))), Some(&create(None)));
        assert_eq!(taken(&revert(None)), None);
        assert_eq!(taken(&Request::Purge { force: true }), None);
        for (state, content, saves_memory) in [
            (Running, None, true),
            (Paused, Some(Content::DisksAndMemory), true),
            (Running, Some(Content::Disks), false),
            (Shutoff, None, false),
            (Shutoff, Some(Content::DisksAndMemory), false),
        ] {
            let expected = if saves_memory { vm(state).memory_bytes } else { 0 };
            assert_eq!(expected_bytes(&vm(state), &create(content)), expected, "{state:?} {content:?}");
        }
    }
}
