//! What is learnt of a call on its way, for its event.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapshot_core::Error;
use snapshot_core::audit::{Event, Outcome, Source, clean};
use snapshot_core::authority::{Action, Actor};
use snapshot_core::error::Class;
use snapshot_core::ids::{OperationId, VmId};

/// What is known of a call so far; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Trail(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    source: Source,
    vm: Option<VmId>,
    operation: Option<OperationId>,
    /// What it is about, where that is no machine and no operation.
    detail: String,
    /// The right that was missing.
    denied: Option<Action>,
    replayed: bool,
    planned: bool,
    /// The event is in the catalogue already, with the intent.
    recorded: bool,
}

impl Trail {
    /// Of a call that arrived.
    pub fn begin(method: &str, request_id: &str, peer: String) -> Self {
        let (method, request_id) = (method.to_owned(), clean(request_id));
        let source = Source { peer: clean(&peer), method, request_id, ..Source::default() };
        Self(Arc::new(Mutex::new(Known { source, ..Known::default() })))
    }

    /// It is known who calls.
    pub fn by(&self, actor: &Actor) {
        let source = &mut self.known().source;
        source.issuer = clean(&actor.issuer);
        source.subject = clean(&actor.subject);
        source.token_id = clean(&actor.token_id);
    }

    /// Whose call it is, for the event that is written with the intent.
    pub fn source(&self) -> Source {
        self.known().source.clone()
    }

    /// It is about this machine.
    pub fn about(&self, vm: VmId) {
        self.known().vm = Some(vm);
    }

    /// It is about this, in the service's own words.
    pub fn detail(&self, what: &str) {
        self.known().detail = clean(what);
    }

    /// The token does not grant this.
    pub fn denied(&self, action: Action) {
        self.known().denied = Some(action);
    }

    /// It is about this operation.
    pub fn operation(&self, operation: OperationId) {
        self.known().operation = Some(operation);
    }

    /// It is a repeat: this is the first operation.
    pub fn replayed(&self, operation: OperationId) {
        let mut known = self.known();
        (known.replayed, known.operation) = (true, Some(operation));
    }

    /// Only a plan was asked for.
    pub fn planned(&self) {
        self.known().planned = true;
    }

    /// Its event is written, with its intent.
    pub fn recorded(&self) {
        self.known().recorded = true;
    }

    /// The event of the call, when there is one to be told.
    pub fn event(&self, error: Option<&Error>, now_ms: i64) -> Option<Event> {
        let known = self.known();
        // AIP's names: what is not read changes something. A new RPC is in the trail unless its name says that it reads.
        let reads = ["Get", "List", "Watch"].iter().any(|verb| known.source.method.starts_with(verb));
        let told = match error {
            _ if known.recorded => false,
            Some(error) => {
                let class = error.reason().class();
                !reads || known.denied.is_some() || matches!(class, Class::Unauthenticated | Class::ResourceExhausted)
            }
            None => !reads && !known.planned,
        };
        if !told {
            return None;
        }
        let outcome = match error {
            Some(_) => Outcome::Refused,
            None if known.replayed => Outcome::Replayed,
            None => Outcome::Accepted,
        };
        let detail = match (known.denied, known.planned) {
            (Some(action), _) => format!("needs {action}"),
            (None, true) => format!("{} validate_only", known.detail).trim().to_owned(),
            (None, false) => known.detail.clone(),
        };
        // A name of ours in an error; only its last part is an id.
        let named =
            |key: &str| error.and_then(|error| error.metadata().get(key)).and_then(|name| name.rsplit('/').next());
        let operation = known.operation.map(|operation| operation.to_string());
        Some(Event {
            vm: known.vm,
            snapshot: named("snapshot").map(clean).unwrap_or_default(),
            operation: operation.or_else(|| named("operation").map(clean)).unwrap_or_default(),
            reason: error.map(|error| error.reason().as_str().to_owned()).unwrap_or_default(),
            detail,
            ..Event::new(now_ms, known.source.clone(), outcome)
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use snapshot_core::Reason;

    use super::*;

    fn vm() -> VmId {
        "0191f7a0-0000-7000-8000-00000000000a".parse().unwrap()
    }

    fn outcome(method: &str, error: Option<Reason>, before: impl Fn(&Trail)) -> Option<Outcome> {
        let trail = Trail::begin(method, "trace", "192.0.2.1".to_owned());
        before(&trail);
        let error = error.map(|reason| Error::new(reason, "why"));
        trail.event(error.as_ref(), 1).map(|event| event.outcome)
    }

    #[test]
    fn changes_are_told_of_and_reads_only_where_a_right_was_missing() {
        let nothing = |_: &Trail| {};
        let denied = |trail: &Trail| trail.denied(Action::Read);
        let refused = Some(Outcome::Refused);
        assert_eq!(outcome("GetVm", None, nothing), None);
        assert_eq!(outcome("GetVm", Some(Reason::VmNotFound), nothing), None, "it does not exist");
        assert_eq!(outcome("GetVm", Some(Reason::VmNotFound), denied), refused, "it may not be seen");
        assert_eq!(outcome("WatchVm", Some(Reason::TokenMissing), nothing), refused);
        assert_eq!(outcome("ListVms", Some(Reason::InvalidPageToken), nothing), None);
        assert_eq!(outcome("DeleteSnapshot", Some(Reason::InvalidField), nothing), refused);
        assert_eq!(outcome("DeleteSnapshot", Some(Reason::VmBusy), Trail::planned), refused);
        assert_eq!(outcome("DeleteSnapshot", None, Trail::planned), None);
        assert_eq!(outcome("ReconcileHost", None, nothing), Some(Outcome::Accepted));
        assert_eq!(outcome("CreateSnapshot", None, Trail::recorded), None, "it is there with its intent");
        assert_eq!(outcome("CreateSnapshot", Some(Reason::SpaceLow), Trail::recorded), None, "and so is its end");
        let operation = OperationId::from_uuid(uuid::Uuid::nil());
        assert_eq!(outcome("CreateSnapshot", None, |trail| trail.replayed(operation)), Some(Outcome::Replayed));
    }

    #[test]
    fn what_it_is_about_is_told() {
        let trail = Trail::begin("DeleteOrphan", "trace", "192.0.2.1".to_owned());
        trail.detail("orphan 1");
        let error = Error::new(Reason::ImageInUse, "why");
        assert_eq!(trail.event(Some(&error), 1).unwrap().detail, "orphan 1");
        trail.planned();
        assert_eq!(trail.event(Some(&error), 1).unwrap().detail, "orphan 1 validate_only");
    }

    #[test]
    fn a_caller_writes_no_lines_of_their_own() {
        let trail = Trail::begin("PurgeVm", "trace", "peer".to_owned());
        let subject = format!("eve\n9 accepted root {}", "x".repeat(5000));
        trail.by(&Actor { issuer: "ravada".into(), subject, token_id: "a\u{202e}\0b".into() });
        trail.about(vm());
        let error = Error::new(Reason::SnapshotNotFound, "a\nb").with("snapshot", "vms/x/snapshots/a\nb");
        let event = trail.event(Some(&error), 1).unwrap();
        assert_eq!((event.source.subject.chars().count(), event.vm), (256, Some(vm())));
        assert!(event.source.subject.starts_with("eve\u{fffd}9 accepted"));
        assert_eq!((event.source.token_id.as_str(), event.snapshot.as_str()), ("a\u{fffd}\u{fffd}b", "a\u{fffd}b"));
    }
}
