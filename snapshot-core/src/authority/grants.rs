//! What a token says, and the most that its issuer may say.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{ParseIdError, VmId};

/// The `aud` of every token this service accepts.
pub const AUDIENCE: &str = "ravada-snapshots";

/// What may be done to a VM. In tokens and configuration: the name in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// See the VM, its snapshots and its operations, and watch them.
    Read,
    /// Take a snapshot.
    Create,
    /// Change the name, description or protection of a snapshot.
    Update,
    /// Put the VM back to a snapshot.
    Revert,
    /// Delete snapshots.
    Delete,
    /// Delete all snapshots of a VM that is going away.
    Purge,
    /// Delete protected snapshots, too: what `force` of a deletion or a purge takes besides the right to it.
    Force,
    /// Look after hosts and the service. Counts only on `*`, see [`authorize_admin`].
    Admin,
}

impl Action {
    /// Every action, in the order of declaration.
    pub const ALL: [Action; 8] = [
        Action::Read,
        Action::Create,
        Action::Update,
        Action::Revert,
        Action::Delete,
        Action::Purge,
        Action::Force,
        Action::Admin,
    ];

    /// What the service's own issuer may be allowed: to see, to take snapshots, and to delete those again.
    pub const OF_SERVICE: [Action; 3] = [Action::Read, Action::Create, Action::Delete];

    /// Whether it takes something from somebody that cannot be got back: one token may begin so many of these.
    pub fn is_destructive(self) -> bool {
        match self {
            Action::Revert | Action::Delete | Action::Purge => true,
            // What is forced is a deletion, which counts.
            Action::Read | Action::Create | Action::Update | Action::Force | Action::Admin => false,
        }
    }

    /// The name in tokens, configuration, logs and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Read => "read",
            Action::Create => "create",
            Action::Update => "update",
            Action::Revert => "revert",
            Action::Delete => "delete",
            Action::Purge => "purge",
            Action::Force => "force",
            Action::Admin => "admin",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which VMs a grant is about. As text: `*` or a VM id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum VmSelector {
    /// Every VM there is and will be.
    Any,
    /// This VM.
    One(VmId),
}

impl VmSelector {
    /// Whether this VM is meant.
    pub fn covers(self, vm: VmId) -> bool {
        match self {
            VmSelector::Any => true,
            VmSelector::One(one) => one == vm,
        }
    }
}

impl fmt::Display for VmSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VmSelector::Any => f.write_str("*"),
            VmSelector::One(vm) => vm.fmt(f),
        }
    }
}

impl FromStr for VmSelector {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" { Ok(VmSelector::Any) } else { text.parse().map(VmSelector::One) }
    }
}

impl TryFrom<String> for VmSelector {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VmSelector> for String {
    fn from(selector: VmSelector) -> Self {
        selector.to_string()
    }
}

/// Some actions on some VMs.
///
/// Unknown members are refused: a member that narrows a grant must not be overlooked by a verifier older than it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The VMs.
    pub vm: VmSelector,
    /// What may be done to them.
    pub actions: BTreeSet<Action>,
}

/// What a token is bound to: the `cnf` claim (RFC 7800). Whoever sends the token to the API has to send the secret with it.
///
/// Unknown members are refused: a token that is bound to something else besides must not be taken without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// The SHA-256 of the secret's characters, in base64url without padding.
    #[serde(rename = "secret#S256")]
    pub secret_sha256: String,
}

/// The payload of a token. Times are in seconds since the Unix epoch. Claims not listed here are ignored (RFC 7519,
/// section 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued the token: the name in the configuration of the services.
    pub iss: String,
    /// On whose behalf, in the issuer's own words: a user name, an operator, a schedule.
    pub sub: String,
    /// Always [`AUDIENCE`]. A list is refused: a token for several audiences can be replayed by any of them.
    pub aud: String,
    /// The token's own id, unique with its issuer.
    pub jti: String,
    /// When it was issued.
    pub iat: i64,
    /// Not valid before, where the issuer sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// When it ends.
    pub exp: i64,
    /// The secret that it is bound to. A token without it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
    /// What it permits.
    pub grants: Vec<Grant>,
}

/// The most that an issuer may grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// The actions it may grant at all.
    pub actions: BTreeSet<Action>,
    /// Whether it may grant on `*`.
    pub any_vm: bool,
    /// Whether it is the service's own, with no user behind it: then [`Action::OF_SERVICE`] bounds `actions`, and of
    /// snapshots it may delete those alone that were made under it.
    pub service: bool,
    /// How many destructive operations one of its tokens may begin on a host.
    pub destructive_uses: u32,
}

impl Ceiling {
    /// Refuses grants that go above this ceiling.
    pub fn admit(&self, grants: &[Grant]) -> Result<(), AboveCeiling> {
        for grant in grants {
            if grant.vm == VmSelector::Any && !self.any_vm {
                return Err(AboveCeiling::AnyVm);
            }
            if let Some(action) = grant.actions.iter().find(|action| !self.allows(**action)) {
                return Err(AboveCeiling::Action(*action));
            }
        }
        Ok(())
    }

    fn allows(&self, action: Action) -> bool {
        self.actions.contains(&action) && (!self.service || Action::OF_SERVICE.contains(&action))
    }
}

/// A token that grants more than its issuer may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AboveCeiling {
    /// An action that the issuer may not grant.
    #[error("the issuer may not grant {0}")]
    Action(Action),
    /// Every VM, where the issuer must name them.
    #[error("the issuer may not grant on every VM")]
    AnyVm,
}
