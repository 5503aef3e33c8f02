//! What a permit opens of a plan.
//!
//! Protected snapshots are deleted by who holds `force` on the VM and by nobody else. A token of the service's own issuer opens less
//! than its grants say.
//!
//! Whoever has the API's machine has the key of that issuer. So it may take snapshots, and delete what was taken under it:
//! the host knows which those are, because it wrote the issuer down itself, from a token that it had verified
//! ([`Label::issuer`](crate::description::Label)). What it may not be granted at all is in
//! [`Action::OF_SERVICE`](super::Action::OF_SERVICE).

use super::{Action, Denied, Permit};
use crate::error::{Error, Reason};
use crate::ids::SnapshotId;
use crate::plan::Plan;
use crate::snapshot::{Origin, SnapshotFacts};
use crate::tree::SnapshotTree;

impl Permit {
    /// Refuses a plan that goes beyond this permit: one that would delete a protected snapshot, unless `force` is granted; and of
    /// the service's own issuer one that would delete a snapshot of somebody else, of nobody, or a protected one. Otherwise a
    /// user's goes as far as the action does.
    pub fn check_plan(&self, tree: &SnapshotTree, plan: &Plan) -> Result<(), Error> {
        let protected = |id: &&SnapshotId| tree.get(id).is_some_and(|snapshot| snapshot.label.protected);
        if let Some(id) = plan.deleted().find(protected).filter(|_| !self.may_force) {
            let denied = Denied::Forbidden { action: Action::Force }.about(self.vm);
            return Err(denied.with("snapshot", format!("vms/{}/snapshots/{id}", self.vm)));
        }
        if !self.service {
            return Ok(());
        }
        match plan.deleted().find(|id| !tree.get(id).is_some_and(|snapshot| self.may_delete(snapshot))) {
            None => Ok(()),
            Some(id) => {
                let message =
                    "the service's own token deletes snapshots that it made itself and that are not protected";
                Err(Error::new(Reason::ActionNotGranted, message)
                    .with("action", self.action.as_str())
                    .with("snapshot", format!("vms/{}/snapshots/{id}", self.vm)))
            }
        }
    }

    fn may_delete(&self, snapshot: &SnapshotFacts) -> bool {
        let label = &snapshot.label;
        snapshot.origin == Origin::Service
            && !label.issuer.is_empty()
            && label.issuer == self.actor.issuer
            && !label.protected
    }
}

#[cfg(test)]
mod tests;
