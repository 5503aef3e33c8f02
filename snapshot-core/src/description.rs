//! What is written into libvirt's `<description>`, so that the catalogue can be rebuilt from the hosts.
//!
//! The first line is the user's name for the snapshot, the second their description, the last a marker with what only
//! this service reads. People who use virsh or virt-manager see the first two as plain text.
//!
//! ```text
//! before exam
//! all packages installed
//! -- ravada-snapshots 1 {"actor":"ravada/alice","protected":false,"issuer":"ravada"}
//! ```
//!
//! A snapshot of the disks alone of a machine that was on has `"disks":"crash"` as well, or another [`Consistency`]: libvirt's own
//! record of one that was taken live is that of a machine that was off.
//!
//! The issuer is the host's own knowledge: it stands in the token that the host verified when the snapshot was taken. The
//! actor holds it too, but a name may have slashes, and what was written by an older version came without the check.

use serde::{Deserialize, Serialize};

use crate::snapshot::Consistency;
use crate::text::{Description, DisplayName};

const MARKER: &str = "-- ravada-snapshots 1 ";

/// What a host keeps about a snapshot besides its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The user's name for it.
    pub display_name: DisplayName,
    /// The user's text about it.
    pub description: Description,
    /// Whether deletion is refused unless forced.
    pub protected: bool,
    /// Who asked for it, `{issuer}/{subject}`; empty where nobody of ours did.
    pub actor: String,
    /// The issuer of the token that it was taken by; empty for what nobody of ours made and where it is not known. Kept on the
    /// host alone: an agent tells it to nobody, and takes nobody's word for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// Of the disks alone of a machine that was on: how consistent they are. Kept on the host, like the issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<Consistency>,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    actor: String,
    protected: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    issuer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disks: Option<Consistency>,
}

impl Label {
    /// The text for libvirt. It has no character that XML cannot carry.
    pub fn encode(&self) -> String {
        self.encode_as(false)
    }

    /// The text for libvirt of a snapshot that is deleted for everybody, and whose removal is not finished.
    pub fn encode_deleted(&self) -> String {
        self.encode_as(true)
    }

    fn encode_as(&self, deleted: bool) -> String {
        let (actor, issuer) = (self.actor.clone(), self.issuer.clone());
        let marker = Marker { actor, protected: self.protected, deleted, issuer, disks: self.disks };
        // Serializing plain fields cannot fail; an empty marker would only cost the actor's name.
        let marker = serde_json::to_string(&marker).unwrap_or_default();
        format!("{}\n{}\n{MARKER}{marker}", self.display_name, self.description)
    }

    /// Reads back what [`Label::encode`] wrote; `None` for a text of another origin.
    pub fn decode(text: &str) -> Option<Self> {
        let (name, description, marker) = parts(text)?;
        Some(Self {
            display_name: DisplayName::parse(name).ok()?,
            description: Description::parse(description).ok()?,
            protected: marker.protected,
            actor: marker.actor,
            issuer: marker.issuer,
            disks: marker.disks,
        })
    }

    /// Whether this is what [`Label::encode_deleted`] wrote.
    pub fn is_deleted(text: &str) -> bool {
        parts(text).is_some_and(|(_, _, marker)| marker.deleted)
    }

    /// What can be told of a snapshot that another tool made: its libvirt name and its description.
    pub fn foreign(name: &str, description: &str) -> Self {
        Self {
            display_name: DisplayName::lossy(name),
            description: Description::lossy(description),
            protected: false,
            actor: String::new(),
            issuer: String::new(),
            disks: None,
        }
    }
}

fn parts(text: &str) -> Option<(&str, &str, Marker)> {
    let mut lines = text.split('\n');
    let (name, description, marker) = (lines.next()?, lines.next()?, lines.next()?);
    if lines.next().is_some() {
        return None;
    }
    Some((name, description, serde_json::from_str(marker.strip_prefix(MARKER)?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Consistency; 5] = [
        Consistency::Complete,
        Consistency::FileSystem,
        Consistency::Crash,
        Consistency::CrashNoAgent,
        Consistency::CrashFreezeTimeout,
    ];

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            name in "\\PC{1,128}", description in "\\PC{0,300}", protected in any::<bool>(), actor in "\\PC{0,40}",
            issuer in "\\PC{0,40}", disks in prop::option::of(prop::sample::select(ALL.as_slice())),
        ) {
            prop_assume!(DisplayName::parse(&name).is_ok() && Description::parse(&description).is_ok());
            let label = Label {
                display_name: DisplayName::parse(&name).unwrap(),
                description: Description::parse(&description).unwrap(),
                protected,
                actor,
                issuer,
                disks,
            };
            prop_assert_eq!(Label::decode(&label.encode()), Some(label.clone()));
            prop_assert!(!Label::is_deleted(&label.encode()) && Label::is_deleted(&label.encode_deleted()));
            prop_assert_eq!(Label::decode(&label.encode_deleted()), Some(label));
        }

        #[test]
        fn any_text_is_ours_or_foreign_and_never_a_panic(text in any::<String>()) {
            let _ = Label::decode(&text);
            let _ = Label::foreign(&text, &text);
        }
    }

    #[test]
    fn a_description_cannot_pose_as_a_marker() {
        let label = Label {
            display_name: DisplayName::parse("x").unwrap(),
            description: Description::parse("-- ravada-snapshots 1 {\"actor\":\"root\",\"protected\":true}").unwrap(),
            protected: false,
            actor: "ravada/alice".to_owned(),
            issuer: "ravada".to_owned(),
            disks: None,
        };
        assert_eq!(Label::decode(&label.encode()), Some(label));
    }

    #[test]
    fn what_an_older_version_wrote_belongs_to_no_issuer() {
        let text = "before exam\n\n-- ravada-snapshots 1 {\"actor\":\"ravada/alice\",\"protected\":true}";
        let label = Label::decode(text).unwrap();
        assert_eq!((label.actor.as_str(), label.issuer.as_str(), label.protected), ("ravada/alice", "", true));
        assert_eq!(label.encode(), text, "and is written back as it was");
    }
}
