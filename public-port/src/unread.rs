//! Answers that their client does not read.
//!
//! Where a client leaves no room for a stream (its window is full), hyper keeps what it has of the answer and does not ask for more. An
//! answer that is not asked for more, although it may have more, is unread. A watch on which nothing happens is not: it was asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often it is looked, as a part of the time that an answer may stay unread.
const LOOKS: u32 = 5;

/// The answers of one connection that are unread, by their numbers, each since when.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    since: Mutex<(u64, BTreeMap<u64, Instant>)>,
}

/// The answer to one request. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Answer {
    number: u64,
    all: Arc<Unread>,
}

impl Unread {
    /// An answer that was not asked for anything yet.
    pub(crate) fn answer(self: &Arc<Self>) -> Answer {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.0 += 1;
        let number = since.0;
        since.1.insert(number, Instant::now());
        Answer { number, all: Arc::clone(self) }
    }

    /// Returns once an answer has been unread for this long.
    pub(crate) async fn for_too_long(&self, most: Duration) {
        loop {
            let oldest = {
                let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
                since.1.values().min().copied()
            };
            if oldest.is_some_and(|since| since.elapsed() > most) {
                return;
            }
            sleep(most / LOOKS).await;
        }
    }
}

impl Answer {
    /// It is asked for more.
    pub(crate) fn is_read(&self) {
        self.all.since.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.number);
    }

    /// It has given something, and may have more.
    pub(crate) fn has_more(&self) {
        self.all.since.lock().unwrap_or_else(PoisonError::into_inner).1.insert(self.number, Instant::now());
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.is_read();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const MOST: Duration = Duration::from_secs(30);

    async fn is_unread(all: &Unread, within: u64) -> bool {
        timeout(Duration::from_secs(within), all.for_too_long(MOST)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_unread_while_it_is_not_asked_for_more() {
        let all = Arc::new(Unread::default());
        assert!(!is_unread(&all, 100).await);
        let (first, second) = (all.answer(), all.answer());
        assert!(is_unread(&all, 40).await, "never asked");
        first.is_read();
        second.is_read();
        assert!(!is_unread(&all, 100).await, "a watch on which nothing happens");
        first.has_more();
        assert!(!is_unread(&all, 25).await);
        first.is_read();
        first.has_more();
        assert!(!is_unread(&all, 25).await, "a client that is slow");
        assert!(is_unread(&all, 20).await);
        drop(first);
        assert!(!is_unread(&all, 100).await);
    }
}
