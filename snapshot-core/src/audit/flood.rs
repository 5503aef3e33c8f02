//! How many events one source may write, and what becomes of the rest: they are counted.
//!
//! Refusals cost an attacker nothing, and each would be a row for ever. Within a period (a minute, by who calls
//! [`Flood::drain`]):
//!
//! - of callers who have not shown who they are, the first refusal of each address and reason is written, the others are counted;
//!   so are all of further addresses once 32 have been seen;
//! - of a caller with a token, the first 60 events are written, the others are counted by outcome and reason.
//!
//! At the end of the period each count becomes one event. So an attacker without a token causes no more than
//! (32 + 1) x (reasons for UNAUTHENTICATED) x 2 events a minute, whatever is sent.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::{Event, Outcome, Source};

/// Addresses of callers without a name that are told apart in a period.
const ADDRESSES: usize = 32;
/// Callers with a name that are told apart in a period.
const CALLERS: usize = 1024;
/// Events of one caller that are written in a period.
const OF_A_CALLER: u32 = 60;
/// Whom those are put down to that are not told apart any more.
const OTHERS: &str = "(others)";
/// The detail of an event that stands for many.
const COUNTED: &str = "counted within a minute";

/// What came in a period.
#[derive(Debug, Default)]
pub struct Flood {
    unnamed: BTreeMap<String, Tally>,
    named: BTreeMap<(String, String), Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    written: u32,
    /// By outcome and reason: the last of them, with how many there were. One that was only written counts none.
    kinds: BTreeMap<(Outcome, String), Event>,
}

impl Flood {
    /// The event, when it is to be written now; `None` when it was counted.
    pub fn admit(&mut self, event: Event) -> Option<Event> {
        let named = is_named(&event);
        let tally = self.tally(&event);
        let kind = (event.outcome, event.reason.clone());
        if named && tally.written < OF_A_CALLER {
            tally.written += 1;
            return Some(event);
        }
        match tally.kinds.entry(kind) {
            Entry::Vacant(place) if !named => {
                place.insert(Event { count: 0, ..event.clone() });
                Some(event)
            }
            Entry::Vacant(place) => {
                place.insert(event);
                None
            }
            Entry::Occupied(mut place) => {
                let count = place.get().count.saturating_add(event.count);
                place.insert(Event { count, ..event });
                None
            }
        }
    }

    /// Counts an event that could not be written.
    pub fn put_back(&mut self, event: Event) {
        let kind = (event.outcome, event.reason.clone());
        let kinds = &mut self.tally(&event).kinds;
        let before = kinds.get(&kind).map_or(0, |known| known.count);
        kinds.insert(kind, Event { count: event.count.saturating_add(before), ..event });
    }

    /// Ends the period: an event for each count. What differed among the counted is left out.
    pub fn drain(&mut self) -> Vec<Event> {
        let unnamed = std::mem::take(&mut self.unnamed).into_iter();
        let unnamed = unnamed.map(|(peer, tally)| (Source { peer, ..Source::default() }, tally));
        let named = std::mem::take(&mut self.named).into_iter();
        let named = named.map(|((issuer, subject), tally)| (Source { issuer, subject, ..Source::default() }, tally));
        let mut events = Vec::new();
        for (source, tally) in unnamed.chain(named) {
            for counted in tally.kinds.into_values().filter(|event| event.count > 0) {
                let (count, reason) = (counted.count, counted.reason);
                let event = Event::new(counted.time_ms, source.clone(), counted.outcome);
                events.push(Event { count, reason, detail: COUNTED.to_owned(), ..event });
            }
        }
        events
    }

    fn tally(&mut self, event: &Event) -> &mut Tally {
        let Source { issuer, subject, peer, .. } = &event.source;
        if is_named(event) {
            let key = (issuer.clone(), subject.clone());
            let known = self.named.len() < CALLERS || self.named.contains_key(&key);
            self.named.entry(if known { key } else { (OTHERS.to_owned(), OTHERS.to_owned()) }).or_default()
        } else {
            let known = self.unnamed.len() < ADDRESSES || self.unnamed.contains_key(peer);
            self.unnamed.entry(if known { peer.clone() } else { OTHERS.to_owned() }).or_default()
        }
    }
}

fn is_named(event: &Event) -> bool {
    !event.source.issuer.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(issuer: &str, peer: &str, reason: &str) -> Event {
        let source = Source { issuer: issuer.into(), subject: "s".into(), peer: peer.into(), ..Source::default() };
        Event { reason: reason.into(), ..Event::new(1, source, Outcome::Refused) }
    }

    #[test]
    fn of_an_unnamed_flood_one_is_written_and_the_rest_is_counted() {
        let mut flood = Flood::default();
        let written = (0..1000).filter_map(|_| flood.admit(refusal("", "192.0.2.1", "TOKEN_MISSING"))).count();
        assert_eq!(written, 1);
        assert!(flood.admit(refusal("", "192.0.2.1", "TOKEN_INVALID")).is_some(), "another reason is another event");
        assert!(flood.admit(refusal("", "192.0.2.2", "TOKEN_MISSING")).is_some(), "another address is");
        let rest = flood.drain();
        assert_eq!(rest.iter().map(|event| event.count).collect::<Vec<_>>(), [999]);
        assert_eq!((rest[0].source.peer.as_str(), rest[0].reason.as_str()), ("192.0.2.1", "TOKEN_MISSING"));
        assert!(flood.drain().is_empty());
        assert!(flood.admit(refusal("", "192.0.2.1", "TOKEN_MISSING")).is_some(), "a new period");
    }

    #[test]
    fn many_addresses_do_not_make_many_events() {
        let mut flood = Flood::default();
        let all = 0..100_000u32;
        let total = u32::try_from(all.len()).unwrap();
        let written =
            all.filter_map(|n| flood.admit(refusal("", &format!("2001:db8::{n:x}"), "TOKEN_MISSING"))).count();
        let rest = flood.drain();
        assert_eq!((written, rest.len()), (ADDRESSES + 1, 1));
        assert_eq!(u32::try_from(written).unwrap() + rest[0].count, total, "none is forgotten");
        assert_eq!(rest[0].source.peer, OTHERS);
    }

    #[test]
    fn a_caller_with_a_name_has_an_allowance_of_their_own() {
        let mut flood = Flood::default();
        let written = (0..100).filter_map(|_| flood.admit(refusal("ravada", "p", "ACTION_NOT_GRANTED"))).count();
        assert_eq!(written, 60);
        for n in 0..5000 {
            flood.admit(refusal(&format!("issuer {n}"), "p", "VM_BUSY"));
            assert!(flood.named.len() <= CALLERS + 1);
        }
        let rest = flood.drain();
        assert!(rest.iter().any(|event| event.source.issuer == OTHERS && event.source.subject == OTHERS));
        assert!(
            rest.iter()
                .any(|event| event.source.issuer == "ravada" && event.count == 40 && event.source.peer.is_empty())
        );
    }

    #[test]
    fn what_could_not_be_written_is_counted() {
        let mut flood = Flood::default();
        for _ in 0..3 {
            let event = flood.admit(refusal("ravada", "p", "VM_BUSY")).unwrap();
            flood.put_back(event);
        }
        let rest = flood.drain();
        assert_eq!(rest.iter().map(|event| event.count).collect::<Vec<_>>(), [3]);
        // Not even the counts could be written.
        rest.into_iter().for_each(|event| flood.put_back(event));
        assert_eq!(flood.drain()[0].count, 3);
    }
}
