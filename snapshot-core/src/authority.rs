//! Who may do what: grants, the ceiling of an issuer, and the permit that an effect demands.
//!
//! A token names its bearer and lists grants. Three questions are answered here, each by a pure function:
//!
//! 1. May this issuer grant this much at all? [`Caller::from_verified`] refuses the whole token if it goes above the
//!    issuer's [`Ceiling`]: trimming it quietly would leave a bearer who believes to hold more than is held.
//! 2. May this caller do this to this VM? [`authorize`] answers with a [`Permit`], which nothing else can make.
//! 3. What may this caller see? [`visible_vms`]; everything a host has: [`authorize_inventory`].
//!
//! What the service does on its own it does by tokens of an issuer of its own, which opens less than its grants say:
//! [`Permit::check_plan`].
//!
//! Actions do not imply one another: `admin` is the right over hosts and the service itself, it does not open any VM,
//! `delete` without `read` is a right to delete what one cannot list, and neither it nor `purge` deletes what is protected:
//! that takes `force` besides. What a token means can thus be read off the
//! token.

use std::collections::BTreeSet;
use std::fmt;

use crate::error::{Error, Reason};
use crate::ids::VmId;
use crate::operation::{OperationKind, Request};

mod grants;
mod service;

pub use grants::{AUDIENCE, AboveCeiling, Action, Ceiling, Claims, Confirmation, Grant, VmSelector};

/// Who acts: what goes into operations, logs and the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Actor {
    /// The issuer of the token.
    pub issuer: String,
    /// Whom the issuer vouches for.
    pub subject: String,
    /// The token's id.
    pub token_id: String,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.issuer, self.subject)
    }
}

/// Who calls, and with which rights: what is left of a token once it has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    actor: Actor,
    expires_at_unix: i64,
    grants: Vec<Grant>,
    service: bool,
    destructive_uses: u32,
}

impl Caller {
    /// The caller behind claims whose signature, audience and times have been verified, if the issuer may grant them.
    pub fn from_verified(claims: Claims, ceiling: &Ceiling) -> Result<Self, AboveCeiling> {
        ceiling.admit(&claims.grants)?;
        let actor = Actor { issuer: claims.iss, subject: claims.sub, token_id: claims.jti };
        let (service, destructive_uses) = (ceiling.service, ceiling.destructive_uses);
        Ok(Self { actor, expires_at_unix: claims.exp, grants: claims.grants, service, destructive_uses })
    }

    /// Who acts.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// The issuer of the token.
    pub fn issuer(&self) -> &str {
        &self.actor.issuer
    }

    /// Whom the issuer vouches for.
    pub fn subject(&self) -> &str {
        &self.actor.subject
    }

    /// The token's id.
    pub fn token_id(&self) -> &str {
        &self.actor.token_id
    }

    /// When the token ends, in seconds since the Unix epoch; a stream opened with it ends then too.
    pub fn expires_at_unix(&self) -> i64 {
        self.expires_at_unix
    }

    /// What the token permits.
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    fn holds(&self, vm: VmId, action: Action) -> bool {
        self.grants.iter().any(|grant| grant.vm.covers(vm) && grant.actions.contains(&action))
    }
}

/// Proof that somebody may do one action to one VM. Only [`authorize`] makes one, so an effect that takes it as an
/// argument cannot be reached without the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    vm: VmId,
    action: Action,
    actor: Actor,
    service: bool,
    is_administrator: bool,
    may_force: bool,
    destructive_uses: u32,
}

impl Permit {
    /// The VM it is for.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The action it is for.
    pub fn action(&self) -> Action {
        self.action
    }

    /// Who was authorized.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Whether the token behind it grants `admin` on `*` as well, which lifts what a host's policy leaves to administrators.
    pub fn is_administrator(&self) -> bool {
        self.is_administrator
    }

    /// How many destructive operations the token behind it may begin on a host.
    pub fn destructive_uses(&self) -> u32 {
        self.destructive_uses
    }
}

/// Proof that somebody may look after hosts and the service. Only [`authorize_admin`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminPermit {
    actor: Actor,
    destructive_uses: u32,
}

impl AdminPermit {
    /// Who was authorized.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// How many destructive operations the token behind it may begin on a host.
    pub fn destructive_uses(&self) -> u32 {
        self.destructive_uses
    }
}

/// Proof that somebody may see all machines of a host. Only [`authorize_inventory`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventoryPermit {
    expires_at_unix: i64,
}

impl InventoryPermit {
    /// When the token behind it ends, in seconds since the Unix epoch.
    pub fn expires_at_unix(&self) -> i64 {
        self.expires_at_unix
    }
}

/// A refusal, and how much it may tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The caller may not even know that the VM exists: answer as for one that does not.
    #[error("not found")]
    Invisible,
    /// The caller knows of the VM, or there is nothing to hide: say which right is missing.
    #[error("the token does not grant {action}")]
    Forbidden {
        /// The right that is missing.
        action: Action,
    },
}

impl Denied {
    /// The refusal as the caller sees it: what may not be known answers as what does not exist.
    pub fn about(self, vm: VmId) -> Error {
        match self {
            Self::Invisible => Error::vm_not_found(vm),
            Self::Forbidden { .. } => self.over_hosts().with("vm", format!("vms/{vm}")),
        }
    }

    /// The refusal of something that concerns no VM.
    pub fn over_hosts(self) -> Error {
        let action = match self {
            Self::Invisible => Action::Read,
            Self::Forbidden { action } => action,
        };
        Error::new(Reason::ActionNotGranted, format!("the token does not grant {action}"))
            .with("action", action.as_str())
    }
}

impl From<OperationKind> for Action {
    /// The right that an operation takes.
    fn from(kind: OperationKind) -> Self {
        match kind {
            OperationKind::Create => Self::Create,
            OperationKind::Update => Self::Update,
            OperationKind::Revert => Self::Revert,
            OperationKind::Delete => Self::Delete,
            OperationKind::Purge => Self::Purge,
        }
    }
}

/// Whether the caller may do `action` to `vm`.
pub fn authorize(caller: &Caller, vm: VmId, action: Action) -> Result<Permit, Denied> {
    if caller.holds(vm, action) {
        let (service, destructive_uses) = (caller.service, caller.destructive_uses);
        let (is_administrator, may_force) = (authorize_admin(caller).is_ok(), caller.holds(vm, Action::Force));
        let actor = caller.actor.clone();
        Ok(Permit { vm, action, actor, service, is_administrator, may_force, destructive_uses })
    } else if caller.holds(vm, Action::Read) {
        Err(Denied::Forbidden { action })
    } else {
        Err(Denied::Invisible)
    }
}

/// Whether the caller may have this done to `vm`: what the operation takes, and what its request takes besides.
pub fn authorize_request(caller: &Caller, vm: VmId, request: &Request) -> Result<Permit, Denied> {
    let besides = match request {
        Request::Revert { save_current: Some(_), .. } => Some(Action::Create),
        Request::Delete { force: true, .. } | Request::Purge { force: true } => Some(Action::Force),
        Request::Create(_)
        | Request::Update { .. }
        | Request::Revert { save_current: None, .. }
        | Request::Delete { force: false, .. }
        | Request::Purge { force: false } => None,
    };
    let permit = authorize(caller, vm, request.kind().into())?;
    if let Some(action) = besides {
        authorize(caller, vm, action)?;
    }
    Ok(permit)
}

/// Whether the caller may stop an operation of this kind on `vm`: who may begin something may stop it. One that the caller
/// may not see does not exist; and the service's own issuer stops nothing, because what runs is somebody's.
pub fn authorize_cancel(caller: &Caller, vm: VmId, kind: OperationKind) -> Result<Permit, Denied> {
    if !caller.holds(vm, Action::Read) {
        return Err(Denied::Invisible);
    }
    if caller.service {
        return Err(Denied::Forbidden { action: kind.into() });
    }
    authorize(caller, vm, kind.into())
}

/// Whether the caller may see all that a host has: `read` on `*`. As of hosts, the refusal is a plain one.
pub fn authorize_inventory(caller: &Caller) -> Result<InventoryPermit, Denied> {
    match visible_vms(caller) {
        Visible::All => Ok(InventoryPermit { expires_at_unix: caller.expires_at_unix }),
        Visible::Only(_) => Err(Denied::Forbidden { action: Action::Read }),
    }
}

/// Whether the caller may look after hosts and the service: `admin` on `*`. Hosts are no secret, so the refusal is
/// always a plain one.
pub fn authorize_admin(caller: &Caller) -> Result<AdminPermit, Denied> {
    let admin = |grant: &Grant| grant.vm == VmSelector::Any && grant.actions.contains(&Action::Admin);
    if caller.grants.iter().any(admin) {
        Ok(AdminPermit { actor: caller.actor.clone(), destructive_uses: caller.destructive_uses })
    } else {
        Err(Denied::Forbidden { action: Action::Admin })
    }
}

/// The VMs a caller may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visible {
    /// All there are.
    All,
    /// These, whether or not they exist.
    Only(BTreeSet<VmId>),
}

impl Visible {
    /// Whether this VM is among them.
    pub fn contains(&self, vm: VmId) -> bool {
        match self {
            Visible::All => true,
            Visible::Only(vms) => vms.contains(&vm),
        }
    }
}

/// The VMs the caller holds `read` on, for lists and watches.
pub fn visible_vms(caller: &Caller) -> Visible {
    let mut only = BTreeSet::new();
    for grant in caller.grants.iter().filter(|grant| grant.actions.contains(&Action::Read)) {
        match grant.vm {
            VmSelector::Any => return Visible::All,
            VmSelector::One(vm) => {
                only.insert(vm);
            }
        }
    }
    Visible::Only(only)
}

#[cfg(test)]
mod tests;
