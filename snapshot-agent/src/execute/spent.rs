//! How often each token was used for what cannot be got back.
//!
//! A token is good for several calls, and whoever gets hold of one, as the API does of every one that passes through it, could
//! go on reverting and deleting until it ends. So each issuer says how many destructive operations one of its tokens may
//! begin on a host. Counted is what was taken on; a repeat of an operation is the same operation, and what was refused or only
//! planned counts for nothing.
//!
//! A use is taken before the operation is written into the journal, and given back where that fails. The journal's entry names
//! the token, so that the next process counts on. A use is remembered, and its entry kept, until no token that was good then
//! can be good still; that is told by the time since boot, because the wall clock may jump.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use capability::{CLOCK_SKEW_SECONDS, MAX_LIFETIME_SECONDS};
use snapshot_core::authority::{Action, Actor};
use snapshot_core::ids::OperationId;
use snapshot_core::operation::Request;
use snapshot_core::{Error, Reason};

use crate::clock::{Moment, since_boot};
use crate::journal::Entry;

/// The longest time between two moments at which one token is good: its life, and the clocks' distance at both ends.
const TOKEN_LIVES_MS: u64 = (MAX_LIFETIME_SECONDS + 2 * CLOCK_SKEW_SECONDS).unsigned_abs() * 1000;

/// The tokens that were used, and what for. One is kept for sixteen minutes, so their number is bounded by how much a host
/// can do in that time.
#[derive(Debug, Default)]
pub(super) struct Spent {
    uses: Mutex<HashMap<OperationId, Use>>,
}

#[derive(Debug)]
struct Use {
    issuer: String,
    token_id: String,
    /// Milliseconds since boot.
    at: u64,
}

/// Whether a token may begin only so many of these.
fn counts(request: &Request) -> bool {
    Action::from(request.kind()).is_destructive()
}

impl Spent {
    /// Takes a use of the entry's token, of which it has so many; refused when they are all taken.
    pub(super) fn take(&self, entry: &Entry, most: u32) -> Result<(), Error> {
        if !counts(&entry.request) {
            return Ok(());
        }
        self.take_use(entry.operation, Use::of(entry, since_boot()), most)
    }

    /// The same for the deletion of an orphan, which is in no journal: the next process does not count it.
    pub(super) fn take_for(&self, actor: &Actor, operation: OperationId, most: u32) -> Result<(), Error> {
        let (issuer, token_id) = (actor.issuer.clone(), actor.token_id.clone());
        self.take_use(operation, Use { issuer, token_id, at: since_boot() }, most)
    }

    fn take_use(&self, operation: OperationId, new: Use, most: u32) -> Result<(), Error> {
        let mut uses = self.lock();
        uses.retain(|_, one| new.at.saturating_sub(one.at) <= TOKEN_LIVES_MS);
        let taken = uses.values().filter(|one| one.issuer == new.issuer && one.token_id == new.token_id).count();
        if taken >= usize::try_from(most).unwrap_or(usize::MAX) && !uses.contains_key(&operation) {
            let message = format!(
                "the token has begun {taken} destructive operations on this host, the most that one may; nothing was done: ask again with a new token"
            );
            return Err(Error::new(Reason::TokenSpent, message).with("destructive_uses", most.to_string()));
        }
        uses.insert(operation, new);
        Ok(())
    }

    /// The operation was not taken on after all.
    pub(super) fn give_back(&self, operation: OperationId) {
        self.lock().remove(&operation);
    }

    /// Counts what a process before this one took on.
    pub(super) fn recall(&self, entry: &Entry) {
        let at = in_this_boot(&entry.accepted);
        if counts(&entry.request) && since_boot().saturating_sub(at) <= TOKEN_LIVES_MS {
            self.lock().insert(entry.operation, Use::of(entry, at));
        }
    }

    /// Whether an operation has to stay in the journal for the sake of its token.
    pub(super) fn needs(&self, operation: OperationId) -> bool {
        let used = self.lock().get(&operation).map(|one| one.at);
        used.is_some_and(|at| since_boot().saturating_sub(at) <= TOKEN_LIVES_MS)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OperationId, Use>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Use {
    fn of(entry: &Entry, at: u64) -> Self {
        Self { issuer: entry.issuer.clone(), token_id: entry.token_id.clone(), at }
    }
}

/// How long after boot that was. What was before the host was booted counts from then on: it may have been a moment ago.
fn in_this_boot(moment: &Moment) -> u64 {
    match moment.elapsed() {
        Some(elapsed) => since_boot().saturating_sub(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)),
        None => 0,
    }
}

#[cfg(test)]
mod tests;
