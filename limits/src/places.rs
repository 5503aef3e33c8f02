//! So many at a time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places, so many in all and fewer for any one caller, so that no caller can take them all.
#[derive(Debug)]
pub struct Places<K> {
    taken: Arc<Mutex<HashMap<K, usize>>>,
    places: Arc<Semaphore>,
    each: usize,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct Place<K: Hash + Eq> {
    taken: Arc<Mutex<HashMap<K, usize>>>,
    caller: K,
    _place: OwnedSemaphorePermit,
}

impl<K: Hash + Eq + Clone> Places<K> {
    /// So many in all, and so many for each caller.
    pub fn new(all: usize, each: usize) -> Self {
        Self { taken: Arc::default(), places: Arc::new(Semaphore::new(all.min(Semaphore::MAX_PERMITS))), each }
    }

    /// A place for a caller, or none when there are enough.
    pub fn take(&self, caller: K) -> Option<Place<K>> {
        self.take_of(caller, self.each)
    }

    /// As [`Places::take`], for a caller who may have another number of them.
    pub fn take_of(&self, caller: K, each: usize) -> Option<Place<K>> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.get(&caller).copied().unwrap_or(0);
        if count >= each {
            return None;
        }
        taken.insert(caller.clone(), count + 1);
        Some(Place { taken: Arc::clone(&self.taken), caller, _place: place })
    }

    /// How many places a caller has.
    pub fn taken(&self, caller: &K) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).get(caller).copied().unwrap_or(0)
    }

    /// How many callers have a place.
    pub fn callers(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_few_and_come_back_and_nobody_is_remembered() {
        let places = Places::new(3, 2);
        let held: Vec<_> = (0..3).filter_map(|_| places.take("a")).collect();
        assert_eq!(held.len(), 2, "a caller's own");
        let other = places.take("b");
        assert!(other.is_some() && places.take("c").is_none(), "all there are");
        drop((held, other));
        assert!(places.take("c").is_some());
        // Nor does one that was refused leave anything behind.
        let none = Places::new(3, 0);
        assert!(none.take("d").is_none());
        assert_eq!((places.callers(), none.callers()), (0, 0));
    }
}
