//! Identifiers, one type per kind, parsed once at the edge.
//!
//! The libvirt name of a snapshot is its id and never text of a user: libvirt turns the name into a path, a qcow2 tag
//! and a default overlay name (see `docs/adr/0002`), so only `[a-z0-9-]` is ever produced here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Text that is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {kind}")]
pub struct ParseIdError {
    /// What was expected, with its article: "a VM id".
    pub kind: &'static str,
    /// The offending text, cut to 80 characters.
    pub text: String,
}

impl ParseIdError {
    fn new(kind: &'static str, text: &str) -> Self {
        Self { kind, text: text.chars().take(80).collect() }
    }
}

/// Parses the canonical form only: 36 lower-case characters. Other spellings of one UUID would give one machine
/// several names, and with them several locks.
fn canonical_uuid(kind: &'static str, text: &str) -> Result<Uuid, ParseIdError> {
    let uuid = Uuid::try_parse(text).map_err(|_| ParseIdError::new(kind, text))?;
    let mut buffer = Uuid::encode_buffer();
    if uuid.hyphenated().encode_lower(&mut buffer) == text { Ok(uuid) } else { Err(ParseIdError::new(kind, text)) }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that was made or checked elsewhere.
            pub fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID within.
            pub fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                canonical_uuid($kind, text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// A virtual machine: libvirt's domain UUID.
    VmId,
    "a VM id (a lower-case UUID)"
);
uuid_id!(
    /// An operation: a UUIDv7, so that ids sort by the time they were made.
    OperationId,
    "an operation id (a lower-case UUID)"
);
uuid_id!(
    /// The caller's idempotency key (AIP-155).
    RequestId,
    "a request id (a lower-case UUID)"
);

uuid_id!(
    /// An orphan: a file that the service created for a VM and that nothing uses any more. The id says nothing of its path.
    OrphanId,
    "an orphan id (a lower-case UUID)"
);

impl OrphanId {
    /// The id of the file at a path that was created for a VM.
    pub fn of(vm: VmId, path: &[u8]) -> Self {
        Self(Uuid::new_v5(&vm.0, path))
    }
}

/// The most bytes a snapshot id may have. libvirt fails late on names over about 247 bytes; foreign names longer than
/// this are not adopted.
pub const SNAPSHOT_ID_MAX_BYTES: usize = 200;

/// What begins an id that stands in for a name.
const STAND_IN: &str = "foreign-";

/// A snapshot of one VM: its libvirt name.
///
/// Ids of our own making are `snap-` and a UUIDv7 without hyphens. Snapshots made by other tools keep the name those
/// gave them, so any name that libvirt accepts and that fits in a resource name is a valid id. libvirt also accepts names
/// with tabs, line ends and more bytes than that: for such a name stands `foreign-` and a digest of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SnapshotId(String);

impl SnapshotId {
    /// The id of ours that carries this UUID. With a UUIDv7 ids sort by the time they were made.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(format!("snap-{}", uuid.simple()))
    }

    /// The id of a snapshot by libvirt's name of it.
    pub fn of_name(name: &str) -> Self {
        let digest = || Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).simple();
        name.parse().unwrap_or_else(|_| Self(format!("{STAND_IN}{}", digest())))
    }

    /// Whether it has the form of an id that stands in for another name. Only libvirt's list of names tells which.
    pub fn may_stand_in(&self) -> bool {
        self.0.starts_with(STAND_IN)
    }

    /// Whether QEMU can name a job after it: ASCII letters, digits, `-`, `.` and `_` (`id_wellformed` in QEMU's source). Of
    /// a name that another id stands in for it is not known, and it is taken not to be.
    pub fn can_name_a_job(&self) -> bool {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        !self.may_stand_in() && self.0.bytes().all(fits)
    }

    /// The libvirt name, or what stands in for it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name has the form of those this service makes.
    pub fn is_ours(&self) -> bool {
        self.0.strip_prefix("snap-").is_some_and(|rest| {
            rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SnapshotId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let acceptable = !text.is_empty()
            && text.len() <= SNAPSHOT_ID_MAX_BYTES
            && !text.starts_with('.')
            && !text.chars().any(|c| c == '/' || c.is_control());
        if acceptable { Ok(Self(text.to_owned())) } else { Err(ParseIdError::new("a snapshot id", text)) }
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A hypervisor, by the name the configuration gives it: 1 to 63 of `[a-z0-9-]`, beginning and ending with a letter or
/// digit (a DNS label, so that it can stand in a certificate's SPIFFE id).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HostId(String);

impl HostId {
    /// The name as configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let acceptable = (1..=63).contains(&text.len())
            && text.bytes().all(|b| label(b) || b == b'-')
            && text.bytes().next().is_some_and(label)
            && text.bytes().last().is_some_and(label);
        if acceptable { Ok(Self(text.to_owned())) } else { Err(ParseIdError::new("a host id", text)) }
    }
}

impl<'de> Deserialize<'de> for HostId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_machine_has_one_spelling() {
        let canonical = "0191f7a0-0000-7000-8000-00000000000a";
        assert!(canonical.parse::<VmId>().is_ok());
        for other in [
            canonical.to_uppercase(),
            canonical.replace('-', ""),
            format!("{{{canonical}}}"),
            format!("urn:uuid:{canonical}"),
            format!(" {canonical}"),
        ] {
            assert!(other.parse::<VmId>().is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn parsers_never_panic_and_only_return_what_they_were_given(text in any::<String>()) {
            if let Ok(id) = text.parse::<VmId>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<HostId>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<SnapshotId>() { prop_assert_eq!(id.to_string(), text); }
        }

        #[test]
        fn every_name_has_an_id_of_its_own(name in any::<String>(), other in "[\\PC\t\n]{1,250}") {
            let id = SnapshotId::of_name(&name);
            prop_assert_eq!(id.as_str().parse::<SnapshotId>().unwrap(), id.clone());
            prop_assert!(id.as_str() == name || id.may_stand_in());
            prop_assert_eq!(SnapshotId::of_name(&other) == id, name == other);
        }

        #[test]
        fn our_ids_are_safe_as_path_and_tag(bits in any::<u128>()) {
            let id = SnapshotId::from_uuid(Uuid::from_u128(bits));
            prop_assert!(id.is_ours());
            prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert_eq!(id.as_str().parse::<SnapshotId>().unwrap(), id);
        }
    }
}
