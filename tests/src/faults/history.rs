//! What happened in a round, one line each, and how often each thing did.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use proto::v1;

use super::judge::Violation;

/// How often each thing happened.
pub type Counts = BTreeMap<String, u64>;

/// A round's history. Everybody writes to it.
#[derive(Debug)]
pub struct History {
    begun: Instant,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    lines: Vec<String>,
    counts: Counts,
    violations: Vec<Violation>,
    ends: BTreeMap<String, v1::OperationState>,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// An empty one that begins now.
    pub fn new() -> Self {
        Self { begun: Instant::now(), told: Mutex::default() }
    }

    /// Tells what somebody does or has been told.
    pub fn tell(&self, who: &str, what: &str) {
        let at = self.begun.elapsed().as_secs_f64();
        self.lock().lines.push(format!("{at:8.3} {who:<8} {what}"));
    }

    /// Counts something.
    pub fn count(&self, what: &str) {
        *self.lock().counts.entry(what.to_owned()).or_default() += 1;
    }

    /// Tells of violations.
    pub fn violated(&self, violations: Vec<Violation>) {
        for violation in violations {
            self.tell("CHECKER", &violation.to_string());
            self.lock().violations.push(violation);
        }
    }

    /// Remembers what an operation was told to have ended as.
    pub fn ended(&self, operation: &v1::Operation) {
        self.lock().ends.insert(operation.name.clone(), operation.state());
    }

    /// What operations were told to have ended as, by their names.
    pub fn ends(&self) -> BTreeMap<String, v1::OperationState> {
        self.lock().ends.clone()
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// The violations so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
