//! Which tokens have been found good lately, by somebody who can tell.
//!
//! A token that was taken has an owner of its own, who is counted by it. One that was not, or not yet, is anybody's, and
//! counts for the address it came from: whoever makes tokens up has one share for all of them, and leaves nothing behind.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What stands before a token in its header, in any case.
const SCHEME: &[u8] = b"bearer ";

/// Tokens, known by a fingerprint that is of no use outside this process.
#[derive(Debug)]
pub struct Seen {
    hasher: RandomState,
    good: Mutex<HashMap<u64, Instant>>,
    keep: Duration,
    most: usize,
}

impl Seen {
    /// Remembers each token for this long, and so many at most.
    pub fn new(keep: Duration, most: usize) -> Self {
        Self { hasher: RandomState::new(), good: Mutex::default(), keep, most }
    }

    /// The fingerprint of the token in an `authorization` header: one for all the spellings of the header.
    pub fn fingerprint(&self, header: &[u8]) -> u64 {
        let header = header.trim_ascii();
        let token = match header.split_at_checked(SCHEME.len()) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => token.trim_ascii(),
            _ => header,
        };
        self.hasher.hash_one(token)
    }

    /// Whether the token was found good, not too long ago.
    pub fn is_good(&self, fingerprint: u64) -> bool {
        let good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.get(&fingerprint).is_some_and(|since| since.elapsed() < self.keep)
    }

    /// The token was taken, or was not.
    pub fn found(&self, fingerprint: u64, good: bool) {
        let mut known = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if !good {
            known.remove(&fingerprint);
        } else if known.len() < self.most || known.contains_key(&fingerprint) {
            known.entry(fingerprint).or_insert_with(Instant::now);
        }
    }

    /// Forgets tokens whose time is over.
    pub fn forget_old(&self) {
        let mut known = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, since| since.elapsed() < self.keep);
        known.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_found_good_is_known_and_not_for_ever() {
        let seen = Seen::new(Duration::from_secs(900), 2);
        let [a, b, c] = [b"a", b"b", b"c"].map(|token| seen.fingerprint(token));
        assert!(!seen.is_good(a));
        seen.found(a, true);
        seen.found(b, true);
        seen.found(c, true);
        assert_eq!([a, b, c].map(|token| seen.is_good(token)), [true, true, false], "there is a most");
        seen.found(a, false);
        assert!(!seen.is_good(a), "a token may end before its time");

        let brief = Seen::new(Duration::ZERO, 2);
        brief.found(brief.fingerprint(b"a"), true);
        assert!(!brief.is_good(brief.fingerprint(b"a")));
        brief.forget_old();
        assert!(brief.good.lock().unwrap().is_empty());
    }

    #[test]
    fn a_token_is_one_however_its_header_is_spelt() {
        let seen = Seen::new(Duration::from_secs(900), 2);
        let one = seen.fingerprint(b"Bearer a.b.c~d");
        for same in ["bearer a.b.c~d", "BEARER   a.b.c~d", "bEarer a.b.c~d ", "a.b.c~d"] {
            assert_eq!(seen.fingerprint(same.as_bytes()), one, "{same:?}");
        }
        for other in ["Bearer a.b.c", "Bearer a.b.c~D", "Basic a.b.c~d", "Bearera.b.c~d", "Bearer", ""] {
            assert_ne!(seen.fingerprint(other.as_bytes()), one, "{other:?}");
        }
    }
}
