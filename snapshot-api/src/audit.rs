//! What of a call goes into the audit trail, and how.
//!
//! - A mutation that is recorded as an operation has its event in the transaction of its intent (`store::operations`), and its
//!   end in that of its outcome. Nothing is done for it here.
//! - Everything else that is to be known of is told here after the call: refusals, repeats, and changes that are no operations. It
//!   is written with what else waits for the writer and never synced for its own sake. What comes in floods is counted
//!   (`snapshot_core::audit::Flood`), and so is what cannot be written, until it can.
//! - Of calls that only read, refusals of rights are events, and such as too many requests; what is not found is none.

mod trail;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mtls::server::PeerInfo;
use snapshot_core::audit::{Event, Flood, Head};

use crate::clock::Clock;
use crate::store::Store;
pub use trail::Trail;

/// The period of a count, and of a look at what is old.
pub const PERIOD: Duration = Duration::from_secs(60);
/// The end of the trail is logged so often, where it changed, for whoever keeps the log elsewhere.
const NOTED_EVERY: u32 = 10;

/// Writes events; clones share the counts.
#[derive(Clone)]
pub struct Audit {
    store: Store,
    clock: Clock,
    flood: Arc<Mutex<Flood>>,
}

impl Audit {
    /// Writes into this catalogue.
    pub fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock, flood: Arc::default() }
    }

    /// Writes or counts what came of a call. That it cannot be written is no reason to answer otherwise, and nobody waits for it:
    /// how long an answer takes must not say whether what was refused exists.
    pub fn tell(&self, event: Event) {
        let Some(event) = self.flood().admit(event) else { return };
        let audit = self.clone();
        let taken = self.store.record_soon(event.clone(), move |event, error| {
            tracing::debug!(%error, "an event could not be written; it is counted");
            audit.count(event);
        });
        if !taken {
            self.count(event);
        }
    }

    fn count(&self, event: Event) {
        metrics::counter!("snapshot_api_audit_unwritten_total").increment(1);
        self.flood().put_back(event);
    }

    /// Writes the counts of a period.
    ///
    /// They are out of the counts while they are being written: who stops this in the middle may lose them.
    pub async fn flush(&self) {
        let events = self.flood().drain();
        if events.is_empty() {
            return;
        }
        if let Err(error) = self.store.record(events.clone()).await {
            tracing::warn!(%error, "events were counted and could not be written; they are counted on");
            events.into_iter().for_each(|event| self.flood().put_back(event));
        }
    }

    /// Looks after the trail until this is dropped: counts, what is old, and the note of its end.
    pub async fn run(self, keep: Option<Duration>) {
        let mut noted = None;
        for minute in 0_u32.. {
            if minute.is_multiple_of(NOTED_EVERY) {
                self.note(&mut noted);
            }
            tokio::time::sleep(PERIOD).await;
            self.flush().await;
            let Some(keep) = keep else { continue };
            match self.store.prune_audit(keep, self.clock.now_ms()).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "events of the audit trail that are old were removed"),
                Err(error) => tracing::warn!(%error, "events of the audit trail that are old could not be removed"),
            }
        }
    }

    /// Logs the end of the trail, unless it is as it was.
    pub fn note(&self, noted: &mut Option<Head>) {
        match self.store.audit_head() {
            Ok(head) if head == *noted => {}
            Ok(Some(head)) => {
                tracing::info!(%head, "the audit trail ends here now: to be verified by `audit verify --after`");
                metrics::gauge!("snapshot_api_audit_sequence").set(head.sequence as f64);
                *noted = Some(head);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the end of the audit trail cannot be read"),
        }
    }

    fn flood(&self) -> std::sync::MutexGuard<'_, Flood> {
        self.flood.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who is at the other end of the connection: the SPIFFE id where there is one, otherwise the address, of IPv6 the network, which
/// is what one household or one attacker has of them.
pub fn peer(extensions: &http::Extensions) -> String {
    let Some(peer) = extensions.get::<PeerInfo>() else { return String::new() };
    match (peer.identity(), peer.remote_addr().ip().to_canonical()) {
        (Some(identity), _) => identity.to_string(),
        (None, IpAddr::V4(address)) => address.to_string(),
        (None, IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use snapshot_core::audit::{Outcome, Source};
    use tempfile::TempDir;

    use super::*;
    use crate::store::tests::full::lock_writes;
    use crate::store::{AuditFilter, AuditRow};

    fn refusal(peer: &str) -> Event {
        let source = Source { peer: peer.to_owned(), method: "GetVm".to_owned(), ..Source::default() };
        Event { reason: "TOKEN_MISSING".to_owned(), ..Event::new(1, source, Outcome::Refused) }
    }

    fn rows(store: &Store) -> Vec<AuditRow> {
        store.audit_events(&AuditFilter { oldest_first: true, ..AuditFilter::default() }, 100).unwrap().rows
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_written_is_counted_until_it_can_be() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("catalogue.db");
        let store = Store::open(&path).unwrap();
        let audit = Audit::new(store.clone(), Clock::system());
        let lock = lock_writes(&path);
        for _ in 0..50 {
            audit.tell(refusal("192.0.2.1"));
        }
        audit.tell(refusal("192.0.2.2"));
        // Waits behind them, fails with them, and the counts go on.
        audit.flush().await;
        assert_eq!(rows(&store).len(), 1, "the trail's beginning alone");
        drop(lock);
        audit.flush().await;
        let told: Vec<_> =
            rows(&store).into_iter().skip(1).map(|row| (row.event.source.peer, row.event.count)).collect();
        assert_eq!(told, [("192.0.2.1".to_owned(), 50), ("192.0.2.2".to_owned(), 1)]);
    }

    /// An attacker without a token cannot make the file grow by what is sent in a minute.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_of_refusals_adds_a_bounded_number_of_rows() {
        let folder = TempDir::new().unwrap();
        let store = Store::open(&folder.path().join("catalogue.db")).unwrap();
        let audit = Audit::new(store.clone(), Clock::system());
        for number in 0..20_000 {
            audit.tell(refusal(&format!("192.0.2.{}", number % 100)));
        }
        audit.flush().await;
        let rows = rows(&store);
        assert!(rows.len() <= 1 + 33 * 2, "{} rows", rows.len());
        assert_eq!(rows.iter().skip(1).map(|row| row.event.count).sum::<u32>(), 20_000, "none is forgotten");
    }
}
