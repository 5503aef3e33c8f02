//! A value made from files, made anew when they change.
//!
//! Every use may look at the files, at most once a second; what is in use is never taken away, only replaced for those
//! who ask next. A set of files is usually replaced one by one, so a moment in which certificate and key do not match is
//! to be expected: it is logged, the value from before stays, and the next look finds the rest.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::TlsError;
use crate::files::Content;

/// How often files are looked at, at most.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The most bytes of one file: a bundle of some hundred CAs.
pub(crate) const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// How often [`look_again`] was called.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// Has every use of files from now on look at them, however short ago the last look was.
pub fn look_again() {
    ASKED.fetch_add(1, Ordering::Release);
}

type Build<T> = Box<dyn Fn(&[Content<'_>]) -> Result<T, TlsError> + Send + Sync>;

/// What a look found: a fingerprint of the contents, or why they cannot be read.
type Found = Result<u64, io::ErrorKind>;

pub(crate) struct Reloader<T> {
    paths: Vec<PathBuf>,
    build: Build<T>,
    current: ArcSwap<T>,
    /// Keyed at random, so that the fingerprint of a private key is of no use outside this process.
    hasher: RandomState,
    state: Mutex<State>,
}

struct State {
    next_look: Instant,
    /// What [`ASKED`] was before the last look.
    asked: u64,
    /// Good or bad, so that one change is acted upon and logged once.
    last: Found,
}

impl<T> fmt::Debug for Reloader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl<T> Reloader<T> {
    /// Reads the files and builds the value from their contents, in the same order. At this point a broken set is an
    /// error.
    pub(crate) fn new(
        paths: Vec<PathBuf>,
        build: impl Fn(&[Content<'_>]) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let asked = ASKED.load(Ordering::Acquire);
        let bytes = read_all(&paths)?;
        let hasher = RandomState::new();
        let state = State { next_look: Instant::now() + LOOK_INTERVAL, asked, last: Ok(hasher.hash_one(&bytes)) };
        let value = build(&contents(&paths, &bytes))?;
        Ok(Self {
            paths,
            build: Box::new(build),
            current: ArcSwap::from_pointee(value),
            hasher,
            state: Mutex::new(state),
        })
    }

    /// The value for a new connection.
    pub(crate) fn current(&self) -> Arc<T> {
        self.look_when_due();
        self.current.load_full()
    }

    fn look_when_due(&self) {
        // Whoever finds the lock taken goes on with the value there is: the holder is looking.
        let mut state = match self.state.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let (now, asked) = (Instant::now(), ASKED.load(Ordering::Acquire));
        if now < state.next_look && asked == state.asked {
            return;
        }
        state.next_look = now + LOOK_INTERVAL;
        state.asked = asked;
        self.look(&mut state);
    }

    /// Contents are compared and not times: the files are small, and a clock's granularity or a preserved mtime cannot
    /// hide a change. Reading them takes some ten microseconds, once a second and only where connections arrive.
    fn look(&self, state: &mut State) {
        let read = read_all(&self.paths);
        let found = match &read {
            Ok(bytes) => Ok(self.hasher.hash_one(bytes)),
            Err(TlsError::Io { source, .. }) => Err(source.kind()),
            Err(_) => Err(io::ErrorKind::InvalidData),
        };
        if found == state.last {
            return;
        }
        state.last = found;
        match read.and_then(|bytes| (self.build)(&contents(&self.paths, &bytes))) {
            Ok(value) => {
                self.current.store(Arc::new(value));
                tracing::info!(files = ?self.paths, "certificates reloaded");
            }
            Err(error) => {
                tracing::error!(files = ?self.paths, %error, "new certificates not usable, those from before stay");
            }
        }
    }
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, TlsError> {
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let io = |source| TlsError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let problem = format!("more than {MAX_FILE_BYTES} bytes");
        return Err(TlsError::Invalid { path: path.to_owned(), problem });
    }
    Ok(bytes)
}

fn contents<'a>(paths: &'a [PathBuf], bytes: &'a [Vec<u8>]) -> Vec<Content<'a>> {
    paths.iter().zip(bytes).map(|(path, bytes)| Content { path, bytes }).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A "key pair": both files must say the same.
    fn pair(contents: &[Content<'_>]) -> Result<String, TlsError> {
        let text = |at: usize| String::from_utf8_lossy(contents[at].bytes).into_owned();
        if text(0) == text(1) { Ok(text(0)) } else { Err(contents[1].invalid("does not match")) }
    }

    #[test]
    fn who_is_told_to_look_again_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("certificate"), dir.path().join("key"));
        let write = |text: &str| [&certificate, &key].map(|path| fs::write(path, text).unwrap());
        write("one");
        let reloader = Reloader::new(vec![certificate.clone(), key.clone()], pair).unwrap();
        // Far from due, however slow this machine is.
        reloader.state.lock().unwrap().next_look += Duration::from_secs(3600);
        assert_eq!(*reloader.current(), "one");
        write("two");
        look_again();
        assert_eq!(*reloader.current(), "two");
    }

    #[test]
    fn a_broken_set_leaves_the_old_value_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("certificate"), dir.path().join("key"));
        let write = |path: &Path, text: &str| fs::write(path, text).unwrap();
        write(&certificate, "one");
        assert!(matches!(Reloader::new(vec![certificate.clone(), key.clone()], pair), Err(TlsError::Io { .. })));
        write(&key, "two");
        assert!(matches!(Reloader::new(vec![certificate.clone(), key.clone()], pair), Err(TlsError::Invalid { .. })));
        write(&key, "one");
        let reloader = Reloader::new(vec![certificate.clone(), key.clone()], pair).unwrap();
        let look = || {
            reloader.look(&mut reloader.state.lock().unwrap());
            reloader.current.load().as_str().to_owned()
        };
        assert_eq!(look(), "one");
        write(&certificate, "two");
        assert_eq!(look(), "one", "half of the new set");
        write(&key, "two");
        assert_eq!(look(), "two", "the whole of it, of the same length");
        fs::remove_file(&key).unwrap();
        assert_eq!(look(), "two", "a file is missing");
        write(&key, &"x".repeat(2 * 1024 * 1024));
        assert_eq!(look(), "two", "a file is far too large");
        write(&key, "two");
        assert_eq!(look(), "two");
    }
}
