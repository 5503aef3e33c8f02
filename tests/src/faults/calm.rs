//! Keeps other tools and the faults that would hit them apart.
//!
//! What libvirt leaves behind when its daemon dies under virsh is not ours to judge. So nobody kills or stops the daemon
//! or a QEMU, or fills the images' file system, while another tool acts, and no other tool begins while that lasts.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a side waits for the other before it goes without.
const PATIENCE: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(20);

/// Who is at it.
#[derive(Debug, Default)]
pub struct Calm(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    meddling: u32,
    troubles: u32,
    /// Faults that wait. Other tools let them go first, or they would never come.
    waiting: u32,
}

/// Other tools are at it until this is dropped.
#[derive(Debug)]
pub struct Meddling<'a>(&'a Calm);

/// Trouble lasts until this is dropped, or, when it is kept up, until [`Calm::over`].
#[derive(Debug)]
pub struct Trouble<'a>(&'a Calm);

impl Trouble<'_> {
    /// Lets it last until it is said to be over.
    pub fn keep_up(self) {
        std::mem::forget(self);
    }
}

impl Calm {
    /// For another tool: waits until there is no trouble. `None` when it does not end.
    pub async fn meddle(&self) -> Option<Meddling<'_>> {
        self.wait(|count| {
            let free = count.troubles == 0 && count.waiting == 0;
            count.meddling += u32::from(free);
            free
        })
        .await
        .then(|| Meddling(self))
    }

    /// For a fault: waits until no other tool is at it. `None` when they do not come to an end.
    pub async fn trouble(&self) -> Option<Trouble<'_>> {
        self.count(|count| count.waiting += 1);
        let came = self
            .wait(|count| {
                let free = count.meddling == 0;
                count.troubles += u32::from(free);
                free
            })
            .await;
        self.count(|count| count.waiting -= 1);
        came.then(|| Trouble(self))
    }

    /// Ends trouble that was kept up.
    pub fn over(&self) {
        self.count(|count| count.troubles = count.troubles.saturating_sub(1));
    }

    async fn wait(&self, enter: impl Fn(&mut Count) -> bool) -> bool {
        let begun = Instant::now();
        loop {
            if self.count(&enter) {
                return true;
            }
            if begun.elapsed() > PATIENCE {
                return false;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn count<T>(&self, act: impl FnOnce(&mut Count) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Meddling<'_> {
    fn drop(&mut self) {
        self.0.count(|count| count.meddling -= 1);
    }
}

impl Drop for Trouble<'_> {
    fn drop(&mut self) {
        self.0.count(|count| count.troubles -= 1);
    }
}
