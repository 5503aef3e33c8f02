//! Enums: each arm is written out, so that a new value on either side does not compile until it is decided.

use snapshot_core::audit;
use snapshot_core::operation::{DeleteScope, Method, NoteKind, OperationKind, OperationState, Outcome, RunAfter};
use snapshot_core::orphan::OrphanState;
use snapshot_core::plan::CapabilityKind;
use snapshot_core::snapshot::{Consistency, Content, Origin, RecordedState, Storage};
use snapshot_core::vm::{Nvram, VmState};

use crate::{agent, v1};

/// Two enums with the same values: into the wire always, and back as an option where the wire has a zero value that
/// the domain does not.
macro_rules! same {
    ($domain:ty, $wire:ty, { $($d:ident = $w:ident),* $(,)? }, unspecified) => {
        impl From<$domain> for $wire {
            fn from(value: $domain) -> Self {
                match value { $(<$domain>::$d => Self::$w,)* }
            }
        }
        impl From<$wire> for Option<$domain> {
            fn from(value: $wire) -> Self {
                match value { $(<$wire>::$w => Some(<$domain>::$d),)* <$wire>::Unspecified => None }
            }
        }
    };
    ($domain:ty, $wire:ty, { $($d:ident = $w:ident),* $(,)? }) => {
        impl From<$domain> for $wire {
            fn from(value: $domain) -> Self {
                match value { $(<$domain>::$d => Self::$w,)* }
            }
        }
        impl From<$wire> for $domain {
            fn from(value: $wire) -> Self {
                match value { $(<$wire>::$w => Self::$d,)* }
            }
        }
    };
}

same!(Content, v1::SnapshotContent, { Disks = Disks, DisksAndMemory = DisksAndMemory }, unspecified);
same!(Storage, v1::StorageKind, { Internal = Internal, External = External }, unspecified);
same!(Origin, v1::SnapshotOrigin, { Service = Service, Foreign = Foreign }, unspecified);
same!(RecordedState, v1::SnapshotVmState, {
    Shutoff = Shutoff, Running = Running, Paused = Paused, DiskOnly = DiskOnly,
}, unspecified);
same!(Consistency, v1::SnapshotConsistency, {
    Complete = Complete, FileSystem = FileSystem, Crash = Crash, CrashNoAgent = CrashNoAgent,
    CrashFreezeTimeout = CrashFreezeTimeout,
}, unspecified);
same!(VmState, v1::VmState, {
    Unknown = Unspecified, Running = Running, Paused = Paused, Shutoff = Shutoff, Crashed = Crashed,
    Suspended = Suspended,
});
same!(OrphanState, v1::OrphanState, {
    Unknown = Unspecified, Ready = Ready, Missing = Missing, Replaced = Replaced,
});
same!(Nvram, agent::Nvram, { Absent = Unspecified, Qcow2 = Qcow2, Raw = Raw });
same!(OperationKind, v1::OperationKind, {
    Create = Create, Update = Update, Revert = Revert, Delete = Delete, Purge = Purge,
}, unspecified);
same!(OperationState, v1::OperationState, {
    Pending = Pending, Running = Running, Succeeded = Succeeded, Failed = Failed, Cancelled = Cancelled,
}, unspecified);
same!(Method, v1::OperationMethod, { Libvirt = Libvirt, Live = Live, InPlace = InPlace }, unspecified);
same!(NoteKind, v1::OperationNoteKind, { Other = Unspecified, GuestClockNotSet = GuestClockNotSet });
same!(audit::Outcome, v1::AuditOutcome, {
    Accepted = Accepted, Replayed = Replayed, Refused = Refused, Succeeded = Succeeded, Failed = Failed,
    Cancelled = Cancelled, Begun = Begun, Pruned = Pruned, Conflict = Conflict, Settled = Settled, Moved = Moved,
}, unspecified);
same!(CapabilityKind, v1::CapabilityKind, {
    CreateDisks = CreateDisks, CreateDisksAndMemory = CreateDisksAndMemory, Revert = Revert, Delete = Delete,
}, unspecified);

impl From<v1::RunAfter> for RunAfter {
    fn from(value: v1::RunAfter) -> Self {
        match value {
            v1::RunAfter::Unspecified | v1::RunAfter::AsRecorded => Self::AsRecorded,
            v1::RunAfter::Running => Self::Running,
            v1::RunAfter::Off => Self::Off,
        }
    }
}

impl From<RunAfter> for v1::RunAfter {
    fn from(value: RunAfter) -> Self {
        match value {
            RunAfter::AsRecorded => Self::AsRecorded,
            RunAfter::Running => Self::Running,
            RunAfter::Off => Self::Off,
        }
    }
}

impl From<v1::DeleteScope> for DeleteScope {
    fn from(value: v1::DeleteScope) -> Self {
        match value {
            v1::DeleteScope::Unspecified | v1::DeleteScope::Only => Self::Only,
            v1::DeleteScope::Subtree => Self::Subtree,
            v1::DeleteScope::Descendants => Self::Descendants,
        }
    }
}

impl From<DeleteScope> for v1::DeleteScope {
    fn from(value: DeleteScope) -> Self {
        match value {
            DeleteScope::Only => Self::Only,
            DeleteScope::Subtree => Self::Subtree,
            DeleteScope::Descendants => Self::Descendants,
        }
    }
}

impl From<Outcome> for v1::OperationState {
    fn from(value: Outcome) -> Self {
        match value {
            Outcome::Succeeded => Self::Succeeded,
            Outcome::Failed => Self::Failed,
            Outcome::Cancelled => Self::Cancelled,
        }
    }
}

impl From<v1::OperationState> for Option<Outcome> {
    fn from(value: v1::OperationState) -> Self {
        match value {
            v1::OperationState::Succeeded => Some(Outcome::Succeeded),
            v1::OperationState::Failed => Some(Outcome::Failed),
            v1::OperationState::Cancelled => Some(Outcome::Cancelled),
            v1::OperationState::Unspecified | v1::OperationState::Pending | v1::OperationState::Running => None,
        }
    }
}
