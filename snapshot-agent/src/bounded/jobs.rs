//! Jobs on threads that may never return.
//!
//! The threads are reused; only those that hang stay where they are. Each tells what it is at ([`doing`]), and whoever waits for
//! the job gives it up when that takes longer than [`Doing::most`]. A job that moves on, from file to file and from call to call,
//! may take [`MOST`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Seconds that a job may take as long as it moves on.
const MOST: Duration = Duration::from_secs(60);
/// Seconds for one access to a file, and for one call to libvirt, which waits for whatever else is done to the domain. Both are less
/// than a caller waits for the host to be seen as a whole, and more than a local disk takes that is busy with other things: three
/// seconds were seen.
const FILE: Duration = Duration::from_secs(6);
const LIBVIRT: Duration = Duration::from_secs(8);
/// How often is looked what a job is at.
const LOOK: Duration = Duration::from_millis(500);
/// Threads that are kept for the next job.
const KEPT: usize = 8;

/// What a job is at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// Nothing that could hang, as far as is known.
    Nothing,
    /// An access to this path.
    File(PathBuf),
    /// A call to libvirt about a domain, by its name in the metrics.
    Libvirt(&'static str),
    /// Waiting for a slot on a connection to libvirt, which has a bound of its own.
    Slot,
}

impl Doing {
    /// How long it may take, at most.
    fn most(&self) -> Duration {
        match self {
            Self::File(_) | Self::Nothing => FILE,
            Self::Libvirt(_) => LIBVIRT,
            Self::Slot => MOST,
        }
    }
}

/// A job that was given up, or refused because an earlier one about the same hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// What does not return.
    pub doing: Doing,
    /// How long that has been so.
    pub since: Duration,
}

/// A job as both sides see it.
struct Shared<T> {
    progress: Arc<Progress>,
    result: Mutex<Option<std::thread::Result<T>>>,
    done: Condvar,
}

struct Progress {
    state: Mutex<(Doing, Instant)>,
}

impl Progress {
    fn set(&self, doing: Doing) -> Doing {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *state, (doing, Instant::now())).0
    }

    fn get(&self) -> (Doing, Instant) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

thread_local! {
    /// The job that this thread is at.
    static JOB: RefCell<Option<Arc<Progress>>> = const { RefCell::new(None) };
    /// The first path that an access to was refused since this was cleared.
    static REFUSED: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Jobs that were given up and have not returned, by what they are about.
static GIVEN_UP: Mutex<BTreeMap<String, Vec<Arc<Progress>>>> = Mutex::new(BTreeMap::new());
/// Threads without a job.
static IDLE: Mutex<Vec<Sender<Task>>> = Mutex::new(Vec::new());
/// How many jobs that were given up have returned.
static RETURNED: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));

type Task = Box<dyn FnOnce() + Send>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells what this thread is at now; returns what it was at before.
pub(crate) fn doing(doing: Doing) -> Doing {
    JOB.with_borrow(|job| job.as_ref().map_or(Doing::Nothing, |job| job.set(doing)))
}

/// An access of this thread to a path was refused.
pub(super) fn refused(path: &Path) {
    REFUSED.with_borrow_mut(|refused| _ = refused.get_or_insert_with(|| path.to_owned()));
}

/// Does something on this thread; with the first path that an access to was refused meanwhile.
pub(crate) fn noting_refusals<T>(work: impl FnOnce() -> T) -> (T, Option<PathBuf>) {
    REFUSED.take();
    let result = work();
    (result, REFUSED.take())
}

/// Tells whenever a job that was given up has returned.
pub fn returned() -> watch::Receiver<u64> {
    RETURNED.subscribe()
}

/// How many jobs were given up and have not returned, each of which holds a thread.
pub fn given_up() -> usize {
    lock(&GIVEN_UP).values().map(Vec::len).sum()
}

fn measure() {
    metrics::gauge!("snapshot_agent_hung_threads").set(given_up() as f64);
}

/// The job about this that hangs, if one does.
pub(crate) fn stuck(about: &str) -> Option<Stuck> {
    let given_up = lock(&GIVEN_UP);
    let (doing, since) = given_up.get(about)?.first()?.get();
    Some(Stuck { doing, since: since.elapsed() })
}

/// Runs a job on a thread of its own and waits for it, within the bounds. It is refused while another one about the same hangs.
/// A job within a job runs on its thread.
pub(crate) fn run<T: Send + 'static>(about: &str, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Stuck> {
    if let Some(stuck) = stuck(about) {
        return Err(stuck);
    }
    if JOB.with_borrow(Option::is_some) {
        return Ok(job());
    }
    let progress = Arc::new(Progress { state: Mutex::new((Doing::Nothing, Instant::now())) });
    let shared = Arc::new(Shared { progress, result: Mutex::new(None), done: Condvar::new() });
    let (worker, span, key) = (Arc::clone(&shared), tracing::Span::current(), about.to_owned());
    let begun = begin(Box::new(move || {
        JOB.set(Some(Arc::clone(&worker.progress)));
        let result = catch_unwind(AssertUnwindSafe(|| span.in_scope(job)));
        JOB.set(None);
        *lock(&worker.result) = Some(result);
        worker.done.notify_all();
        end(&key, &worker.progress);
    }));
    match begun {
        Ok(()) => wait(about, &shared),
        Err(error) => {
            tracing::warn!(about, %error, "no thread could be started");
            Err(Stuck { doing: Doing::Nothing, since: Duration::ZERO })
        }
    }
}

fn wait<T>(about: &str, shared: &Shared<T>) -> Result<T, Stuck> {
    let begun = Instant::now();
    let mut result = lock(&shared.result);
    loop {
        if let Some(done) = result.take() {
            return Ok(done.unwrap_or_else(|panic| resume_unwind(panic)));
        }
        let (doing, since) = shared.progress.get();
        let left = doing.most().saturating_sub(since.elapsed()).min(MOST.saturating_sub(begun.elapsed()));
        if left.is_zero() {
            // Under the lock of the result: the job has not returned, and will find that it was given up.
            lock(&GIVEN_UP).entry(about.to_owned()).or_default().push(Arc::clone(&shared.progress));
            drop(result);
            measure();
            let stuck = Stuck { doing, since: since.elapsed() };
            tracing::warn!(about, doing = ?stuck.doing, since = ?stuck.since, "given up: it does not respond");
            return Err(stuck);
        }
        // It may go on to something that may take less.
        let waited = shared.done.wait_timeout(result, left.min(LOOK));
        result = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// A job has returned. Where it was given up, what was refused because of it can be tried again.
fn end(about: &str, progress: &Arc<Progress>) {
    let mut given_up = lock(&GIVEN_UP);
    let Some(jobs) = given_up.get_mut(about) else { return };
    let before = jobs.len();
    jobs.retain(|job| !Arc::ptr_eq(job, progress));
    let was_given_up = jobs.len() < before;
    if jobs.is_empty() {
        given_up.remove(about);
    }
    drop(given_up);
    if was_given_up {
        tracing::info!(about, "what had been given up has returned");
        measure();
        RETURNED.send_modify(|count| *count += 1);
    }
}

/// Has an idle thread do it, or a new one.
fn begin(mut task: Task) -> io::Result<()> {
    while let Some(idle) = lock(&IDLE).pop() {
        match idle.send(task) {
            Ok(()) => return Ok(()),
            Err(unsent) => task = unsent.0,
        }
    }
    let (sender, receiver) = channel();
    std::thread::Builder::new().name("bounded".to_owned()).spawn({
        let sender = sender.clone();
        move || work(&sender, &receiver)
    })?;
    // The thread receives until the idle list is full, so it is there.
    sender.send(task).map_err(|_| io::Error::other("a thread ended at once"))
}

fn work(sender: &Sender<Task>, tasks: &Receiver<Task>) {
    while let Ok(task) = tasks.recv() {
        task();
        let mut idle = lock(&IDLE);
        if idle.len() >= KEPT {
            return;
        }
        idle.push(sender.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_returns_is_not_held_up_by_one_that_does_not() {
        let (release, released) = channel::<()>();
        let hung = run("first", move || {
            doing(Doing::File(PathBuf::from("/hung")));
            released.recv().is_ok()
        });
        let stuck = hung.unwrap_err();
        assert_eq!(stuck.doing, Doing::File(PathBuf::from("/hung")));
        assert!(stuck.since >= FILE);
        let begun = Instant::now();
        let refused = run("first", || true).unwrap_err();
        assert!(refused.since >= FILE && begun.elapsed() < FILE, "refused at once");
        assert_eq!(run("second", || 7), Ok(7));
        let mut returned = returned();
        returned.mark_unchanged();
        release.send(()).unwrap();
        let since = Instant::now();
        while run("first", || true).is_err() {
            assert!(since.elapsed() < Duration::from_secs(10), "it is free again");
            std::thread::yield_now();
        }
        while !returned.has_changed().unwrap() {
            assert!(since.elapsed() < Duration::from_secs(10), "it is told");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_panic_is_the_callers() {
        let caught = catch_unwind(|| run("panics", || -> u32 { panic!("as it should") }));
        assert!(caught.is_err());
        assert_eq!(run("panics", || 1), Ok(1));
    }

    #[test]
    fn refusals_are_noted() {
        let ((), none) = noting_refusals(|| ());
        assert_eq!(none, None);
        let ((), first) = noting_refusals(|| {
            refused(Path::new("/a"));
            refused(Path::new("/b"));
        });
        assert_eq!(first, Some(PathBuf::from("/a")));
    }
}
