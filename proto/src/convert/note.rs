//! What a person should know of an operation that succeeded.

use snapshot_core::operation::Note;

use crate::v1;

impl From<&Note> for v1::OperationNote {
    fn from(note: &Note) -> Self {
        let mut wire = Self { message: note.message.clone(), ..Self::default() };
        wire.set_kind(note.kind.into());
        wire
    }
}

impl From<v1::OperationNote> for Note {
    /// A kind of a newer agent keeps its message.
    fn from(wire: v1::OperationNote) -> Self {
        Self { kind: wire.kind().into(), message: wire.message }
    }
}
