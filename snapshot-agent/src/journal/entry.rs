//! What an operation's file in the journal tells.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use snapshot_core::Error;
use snapshot_core::ids::{OperationId, VmId};
use snapshot_core::layers::Merge;
use snapshot_core::operation::{Method, Note, Outcome, Request};
use snapshot_core::plan::Step;
use snapshot_core::vm::VmState;

use crate::clock::Moment;

/// An operation that was taken on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its id.
    pub operation: OperationId,
    /// The machine.
    pub vm: VmId,
    /// What was asked.
    pub request: Request,
    /// Who asked, `{issuer}/{subject}`.
    pub actor: String,
    /// The issuer of the token by which it was asked, as this agent verified it. Empty in what an older version wrote.
    #[serde(default)]
    pub issuer: String,
    /// The token's id, unique with its issuer.
    #[serde(default)]
    pub token_id: String,
    /// The caller's id of the request, for the logs.
    pub request_id: String,
    /// What is to be done.
    pub steps: Vec<Step>,
    /// How.
    pub method: Option<Method>,
    /// Whether it can be stopped between steps.
    pub cancellable: bool,
    /// How long the guest is expected to stand still, in milliseconds. Absent, too, in what an older version wrote.
    #[serde(default)]
    pub predicted_pause_ms: Option<u64>,
    /// What the machine did.
    pub before: Before,
    /// The files its disks were on, by target.
    #[serde(default, deserialize_with = "active")]
    pub active: BTreeMap<String, String>,
    /// When it was taken on.
    pub accepted: Moment,
}

/// An older agent wrote the files without their targets. What cannot be told apart is given up by nobody.
fn active<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Active {
        ByTarget(BTreeMap<String, String>),
        #[expect(dead_code, reason = "it is only recognised")]
        Paths(Vec<String>),
    }
    Ok(match Active::deserialize(deserializer)? {
        Active::ByTarget(active) => active,
        Active::Paths(_) => BTreeMap::new(),
    })
}

/// What a machine did before an operation, to tell afterwards what has happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its state.
    pub state: VmState,
    /// The number of its run.
    pub instance: Option<u32>,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Done, not done, or stopped.
    pub outcome: Outcome,
    /// Why it was not done, and what is left.
    pub error: Option<Error>,
    /// How it was done.
    pub method: Option<Method>,
    /// How long the guest stood still, in milliseconds.
    pub pause_ms: Option<u64>,
    /// How long it was expected to, in milliseconds.
    #[serde(default)]
    pub predicted_pause_ms: Option<u64>,
    /// What a person should know of it.
    #[serde(default)]
    pub notes: Vec<Note>,
}

/// A merge of a disk's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merging {
    /// Which.
    pub merge: Merge,
    /// The file of the running machine that lay on the top: once it lies on the base, libvirt has copied everything.
    pub child: Option<String>,
    /// Whether its base has everything; before that it was begun at most.
    pub copied: bool,
}
