//! The note of one host in one directory: JSON, which an administrator can write for a host without an agent.
//!
//! ```json
//! {"format": 1, "host": "alpha", "images": {"desk.qcow2": {"6f1c2f5e-…": "desk"}}}
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};

use serde::{Deserialize, Serialize};
use snapshot_core::ids::HostId;
use uuid::Uuid;

/// Of the name of a note, after the host's.
pub(super) const EXTENSION: &str = "json";

/// The only format that is understood.
const FORMAT: u32 = 1;

/// By the name of an image in the directory: the VMs that use it, by UUID, with their names.
pub(crate) type Images = BTreeMap<String, BTreeMap<Uuid, String>>;

/// Which images of a directory a host uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    format: u32,
    /// The host, which its file is called after.
    pub(super) host: HostId,
    /// The agent that wrote it; none where a person did.
    #[serde(default)]
    pub(super) instance: Option<Uuid>,
    /// What it uses.
    pub(super) images: Images,
}

impl Note {
    /// Of an agent.
    pub(super) fn new(host: HostId, instance: Uuid, images: Images) -> Self {
        Self { format: FORMAT, host, instance: Some(instance), images }
    }

    /// The file that it is written to.
    pub(super) fn file_name(host: &HostId) -> String {
        format!("{host}.{EXTENSION}")
    }

    /// Its bytes.
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// What a file holds. One of a newer format is an error, and so is one of more than `most` bytes.
    pub(super) fn read(file: File, most: u64) -> io::Result<Self> {
        let mut bytes = Vec::new();
        if file.take(most + 1).read_to_end(&mut bytes)? as u64 > most {
            return Err(io::Error::other("it is too large"));
        }
        let note: Self = serde_json::from_slice(&bytes)?;
        if note.format != FORMAT {
            return Err(io::Error::other(format!(
                "its format is {}, and this agent understands {FORMAT}",
                note.format
            )));
        }
        Ok(note)
    }
}
