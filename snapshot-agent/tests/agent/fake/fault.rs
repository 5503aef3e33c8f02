//! What can go wrong with a call.

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails and has done nothing.
    Refused,
    /// It has done everything and says that it failed.
    RefusedAfter,
    /// It has done half of it and says that it failed.
    RefusedHalfway,
    /// libvirt goes away before it began.
    Lost,
    /// libvirt goes away after it was done.
    LostAfter,
    /// libvirt goes away in the middle.
    LostHalfway,
    /// It panics before it began.
    Panics,
    /// It panics after it was done.
    PanicsAfter,
    /// The agent dies before it began: no later call of this process does anything.
    Dies,
    /// The agent dies after it was done.
    DiesAfter,
    /// The agent and libvirt die in the middle.
    DiesHalfway,
}

impl Fault {
    /// All of them.
    pub(crate) const ALL: [Fault; 11] = [
        Self::Refused,
        Self::RefusedAfter,
        Self::RefusedHalfway,
        Self::Lost,
        Self::LostAfter,
        Self::LostHalfway,
        Self::Panics,
        Self::PanicsAfter,
        Self::Dies,
        Self::DiesAfter,
        Self::DiesHalfway,
    ];

    /// Whether the process does not outlive it.
    pub(crate) fn is_death(self) -> bool {
        matches!(self, Self::Dies | Self::DiesAfter | Self::DiesHalfway)
    }
}
