//! The one error of the project: a machine-readable [`Reason`], a message for the caller, and facts about the case.
//!
//! A reason crosses every wire unchanged (`google.rpc.ErrorInfo.reason`), so an error that began in an agent reaches
//! the user as what it was. docs/errors.md lists each reason with who does what about it; a test holds the two together.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The family of a reason, which decides the gRPC code and whether a client may simply ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The request itself is wrong, whatever the state.
    InvalidArgument,
    /// The caller has not shown who they are.
    Unauthenticated,
    /// The caller may see the thing, and may not do this to it.
    PermissionDenied,
    /// It does not exist, or the caller may not know that it does.
    NotFound,
    /// The request id was used for something else.
    AlreadyExists,
    /// Something else is going on, or has changed meanwhile.
    Aborted,
    /// The state of the machine forbids it.
    FailedPrecondition,
    /// A limit is reached.
    ResourceExhausted,
    /// Somebody who is needed cannot be reached.
    Unavailable,
    /// It was stopped on request.
    Cancelled,
    /// A fault of this service or of the host.
    Internal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $class:ident, $retryable:literal;)*) => {
        /// Why something was refused or failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The text on the wire, in UPPER_SNAKE.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            /// The family it belongs to.
            pub fn class(self) -> Class {
                match self { $(Reason::$name => Class::$class,)* }
            }

            /// Whether the same request may succeed later without anybody changing anything.
            pub fn retryable(self) -> bool {
                match self { $(Reason::$name => $retryable,)* }
            }
        }
    };
}

reasons! {
    /// A field has a value it may not have; the metadata key `field` names it.
    InvalidField = "INVALID_FIELD", InvalidArgument, false;
    /// A page token that was not made for this query.
    InvalidPageToken = "INVALID_PAGE_TOKEN", InvalidArgument, false;
    /// A token is missing.
    TokenMissing = "TOKEN_MISSING", Unauthenticated, false;
    /// A token is malformed, not for this service, or not signed by a known key.
    TokenInvalid = "TOKEN_INVALID", Unauthenticated, false;
    /// A token's time is over or has not begun.
    TokenExpired = "TOKEN_EXPIRED", Unauthenticated, false;
    /// The token has begun as many destructive operations as one may; nothing was done.
    TokenSpent = "TOKEN_SPENT", Unauthenticated, false;
    /// The token does not grant the action.
    ActionNotGranted = "ACTION_NOT_GRANTED", PermissionDenied, false;
    /// The token ended before a host took the operation on; nothing was done.
    AuthorizationExpired = "AUTHORIZATION_EXPIRED", Unauthenticated, false;
    /// No such machine, or none that the caller may see.
    VmNotFound = "VM_NOT_FOUND", NotFound, false;
    /// No such snapshot.
    SnapshotNotFound = "SNAPSHOT_NOT_FOUND", NotFound, false;
    /// No such operation, or none that the caller may see.
    OperationNotFound = "OPERATION_NOT_FOUND", NotFound, false;
    /// No such orphan, or its file is not there or not the one on record any more.
    OrphanNotFound = "ORPHAN_NOT_FOUND", NotFound, false;
    /// No such host.
    HostNotFound = "HOST_NOT_FOUND", NotFound, false;
    /// The request id belongs to another request.
    RequestIdReused = "REQUEST_ID_REUSED", AlreadyExists, false;
    /// Another operation is changing the machine; the metadata key `operation` names it.
    VmBusy = "VM_BUSY", Aborted, true;
    /// The thing was changed since the caller read it.
    EtagMismatch = "ETAG_MISMATCH", Aborted, false;
    /// The host runs as many operations as it may.
    HostBusy = "HOST_BUSY", ResourceExhausted, true;
    /// The host's agent cannot be reached.
    HostUnreachable = "HOST_UNREACHABLE", Unavailable, true;
    /// Two hosts say that the VM is active on them; the metadata keys `host` and `other_host` name them.
    HostConflict = "HOST_CONFLICT", FailedPrecondition, false;
    /// The host was lost while the operation was under way, and the VM is on another one now; the metadata key `host` names the first.
    HostLost = "HOST_LOST", Aborted, false;
    /// The service is stopping.
    ShuttingDown = "SHUTTING_DOWN", Unavailable, true;
    /// libvirt on the host does not answer.
    HypervisorUnavailable = "HYPERVISOR_UNAVAILABLE", Unavailable, true;
    /// The catalogue cannot be written, for instance because the disk is full.
    CatalogueUnavailable = "CATALOGUE_UNAVAILABLE", Unavailable, true;
    /// The caller asks too often, or for too much at a time; the metadata key `retry_after_ms` says how long to wait.
    RateLimited = "RATE_LIMITED", ResourceExhausted, true;
    /// The request is larger than it may be.
    RequestTooLarge = "REQUEST_TOO_LARGE", ResourceExhausted, false;
    /// The machine vanishes when it stops.
    VmTransient = "VM_TRANSIENT", FailedPrecondition, false;
    /// The machine is hibernated.
    VmHibernated = "VM_HIBERNATED", FailedPrecondition, false;
    /// The machine is in a state, such as crashed, in which this cannot be done.
    VmStateUnsupported = "VM_STATE_UNSUPPORTED", FailedPrecondition, false;
    /// The running state was asked for, and the machine is off.
    VmNotRunning = "VM_NOT_RUNNING", FailedPrecondition, false;
    /// A block job runs on a disk.
    BlockJobActive = "BLOCK_JOB_ACTIVE", FailedPrecondition, true;
    /// A disk's format cannot hold snapshots.
    DiskFormatUnsupported = "DISK_FORMAT_UNSUPPORTED", FailedPrecondition, false;
    /// The machine has no disk to take a snapshot of.
    NoWritableDisk = "NO_WRITABLE_DISK", FailedPrecondition, false;
    /// UEFI variables are in a raw file, which a snapshot cannot hold.
    NvramUnsupported = "NVRAM_UNSUPPORTED", FailedPrecondition, false;
    /// The medium in a removable drive is missing.
    MediumMissing = "MEDIUM_MISSING", FailedPrecondition, false;
    /// The disks alone of a running machine cannot be captured on this host.
    LiveDisksUnsupported = "LIVE_DISKS_UNSUPPORTED", FailedPrecondition, false;
    /// A freeze was asked for where none is possible.
    QuiesceUnsupported = "QUIESCE_UNSUPPORTED", FailedPrecondition, false;
    /// External snapshots are not possible here.
    ExternalUnsupported = "EXTERNAL_UNSUPPORTED", FailedPrecondition, false;
    /// The snapshot is stored in a way that this cannot be done to.
    SnapshotStorageUnsupported = "SNAPSHOT_STORAGE_UNSUPPORTED", FailedPrecondition, false;
    /// A file that the snapshot would be written to exists.
    TargetExists = "TARGET_EXISTS", FailedPrecondition, false;
    /// A disk is spread over as many files as it may.
    LayerLimit = "LAYER_LIMIT", ResourceExhausted, false;
    /// A freeze was asked for, and the machine has no channel to a guest agent.
    GuestAgentAbsent = "GUEST_AGENT_ABSENT", FailedPrecondition, false;
    /// A freeze was asked for, and the guest agent does not answer.
    GuestAgentSilent = "GUEST_AGENT_SILENT", FailedPrecondition, true;
    /// A freeze was asked for, and somebody has frozen the file systems already.
    GuestFrozen = "GUEST_FROZEN", FailedPrecondition, true;
    /// The file systems had been frozen for as long as they may be and were thawed before the snapshot was taken.
    GuestThawed = "GUEST_THAWED", Aborted, true;
    /// The snapshot is protected.
    SnapshotProtected = "SNAPSHOT_PROTECTED", FailedPrecondition, false;
    /// The snapshot's data is gone.
    SnapshotBroken = "SNAPSHOT_BROKEN", FailedPrecondition, false;
    /// The snapshot holds the running state and not every disk: a revert would pair a memory with a disk that it does
    /// not know. Only ever the cause of a broken snapshot.
    DisksDiffer = "DISKS_DIFFER", FailedPrecondition, false;
    /// QEMU cannot name a job after the snapshot, which is what this takes in the state that the machine is in.
    SnapshotNameUnsupported = "SNAPSHOT_NAME_UNSUPPORTED", FailedPrecondition, false;
    /// An image is in a folder that the host's agent may not touch.
    ImageOutOfReach = "IMAGE_OUT_OF_REACH", FailedPrecondition, false;
    /// A device, an element of the definition or a property of an image that this cannot be done with, or that is not
    /// understood; the metadata key `feature` may name it.
    FeatureUnsupported = "FEATURE_UNSUPPORTED", FailedPrecondition, false;
    /// A disk is encrypted by QEMU, and the operation would fail, stop the VM or write clear text.
    DiskEncrypted = "DISK_ENCRYPTED", FailedPrecondition, false;
    /// An image has persistent dirty bitmaps, as incremental backup tools create them; QEMU refuses to revert it.
    CheckpointsPresent = "CHECKPOINTS_PRESENT", FailedPrecondition, false;
    /// Another VM or another process uses an image of the VM; the metadata key `user` may name it.
    ImageInUse = "IMAGE_IN_USE", FailedPrecondition, false;
    /// An image or one of its backing files is missing, cannot be read or is marked as corrupt.
    ImageUnavailable = "IMAGE_UNAVAILABLE", FailedPrecondition, false;
    /// A resource of the host that the definition in a snapshot names does not exist; the metadata key `resource` names it.
    ResourceMissing = "RESOURCE_MISSING", FailedPrecondition, false;
    /// The name of a snapshot is the id of another one in an image; QEMU would take the other.
    SnapshotNameAmbiguous = "SNAPSHOT_NAME_AMBIGUOUS", FailedPrecondition, false;
    /// The disks of the VM hold states of different moments after a revert that failed; the metadata keys tell which.
    DisksMixed = "DISKS_MIXED", FailedPrecondition, false;
    /// The storage of an image does not respond.
    StorageUnresponsive = "STORAGE_UNRESPONSIVE", Unavailable, true;
    /// The revert would change the definition of the VM, which the host's policy denies.
    DefinitionChangeDenied = "DEFINITION_CHANGE_DENIED", FailedPrecondition, false;
    /// Not enough space is free.
    SpaceLow = "SPACE_LOW", ResourceExhausted, false;
    /// The machine has as many snapshots as it may.
    SnapshotLimit = "SNAPSHOT_LIMIT", ResourceExhausted, false;
    /// The user has, or the machine's snapshots take, as much as they may; the metadata key `quota` names the limit.
    QuotaExceeded = "QUOTA_EXCEEDED", ResourceExhausted, false;
    /// It can no longer be stopped.
    NotCancellable = "NOT_CANCELLABLE", FailedPrecondition, false;
    /// It was stopped on request.
    Cancelled = "CANCELLED", Cancelled, false;
    /// libvirt refused or failed; the metadata keys `libvirt_code` and `libvirt_message` say how.
    HypervisorFailed = "HYPERVISOR_FAILED", Internal, false;
    /// The agent was stopped in the middle; what had been done was undone or is named in the message.
    Interrupted = "INTERRUPTED", Aborted, true;
    /// The host answered in a way that it should not.
    HostProtocol = "HOST_PROTOCOL", Internal, false;
    /// A fault in the service itself.
    Internal = "INTERNAL", Internal, false;
}

impl Reason {
    /// The reason with this text, if there is one.
    pub fn parse(text: &str) -> Option<Reason> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Reason::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("unknown reason {text:?}")))
    }
}

/// A refusal or a failure, as the caller sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    reason: Reason,
    message: String,
    metadata: BTreeMap<String, String>,
}

impl Error {
    /// An error for this reason, with a sentence for the caller.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: BTreeMap::new() }
    }

    /// A field that has a value it may not have.
    pub fn invalid(field: &str, message: impl fmt::Display) -> Self {
        Self::new(Reason::InvalidField, format!("{field}: {message}")).with("field", field)
    }

    /// A machine that does not exist or that the caller may not see: the two must not differ in one byte.
    pub fn vm_not_found(vm: impl fmt::Display) -> Self {
        Self::new(Reason::VmNotFound, format!("vms/{vm} does not exist")).with("vm", format!("vms/{vm}"))
    }

    /// A snapshot that does not exist.
    pub fn snapshot_not_found(vm: impl fmt::Display, snapshot: impl fmt::Display) -> Self {
        let name = format!("vms/{vm}/snapshots/{snapshot}");
        Self::new(Reason::SnapshotNotFound, format!("{name} does not exist")).with("snapshot", name)
    }

    /// Adds a fact about the case.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The sentence for the caller.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The facts about the case.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn retryable(&self) -> bool {
        self.reason.retryable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_text() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        }
    }

    #[test]
    fn every_reason_is_documented() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md")).unwrap();
        for reason in Reason::ALL {
            assert!(page.contains(&format!("| `{reason}` |")), "docs/errors.md lacks {reason}");
        }
    }
}
