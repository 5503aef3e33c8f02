//! What a plan destroys.

use std::fmt;

use crate::definition_change::DefinitionChange;
use crate::snapshot::SnapshotFacts;

/// Something that cannot be got back once a plan is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// What was written to the disks since a snapshot was taken, or since the machine was made.
    ChangesSince(Option<Box<SnapshotFacts>>),
    /// What runs in the machine now.
    RunningState,
    /// A disk that the snapshot does not know leaves the machine; its image stays.
    DiskDetached(String),
    /// The UEFI variables of that time, which the snapshot does not hold: those of now stay, with older disks.
    UefiVariables,
    /// The state of the emulated TPM, which the snapshot does not hold: the present one stays, with older disks.
    TpmState,
    /// A setting or a device of the VM's definition, which becomes that of the snapshot.
    DefinitionChange(DefinitionChange),
    /// A snapshot.
    Snapshot(Box<SnapshotFacts>),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChangesSince(Some(snapshot)) => {
                write!(f, "everything written to the disks since \u{201c}{}\u{201d}", snapshot.label.display_name)
            }
            Self::ChangesSince(None) => f.write_str("everything written to the disks since the machine was made"),
            Self::RunningState => f.write_str("the programs that are running now and what they have not saved"),
            Self::DiskDetached(disk) => {
                write!(f, "disk {disk} was added later: it leaves the machine (its image file stays)")
            }
            Self::UefiVariables => f.write_str(
                "the UEFI variables of that time (such as the order in which it boots) are not in the snapshot: \
                 the machine keeps those it has now",
            ),
            Self::TpmState => f.write_str(
                "the state of the TPM is not in the snapshot: the TPM keeps its present state, and BitLocker may ask for its \
                 recovery key",
            ),
            Self::DefinitionChange(change) => change.fmt(f),
            Self::Snapshot(snapshot) => write!(f, "the snapshot \u{201c}{}\u{201d}", snapshot.label.display_name),
        }
    }
}
