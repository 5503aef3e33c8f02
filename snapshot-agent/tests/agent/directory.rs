//! A test's own directory.
//!
//! An agent may still make files in it when the test ends: it prepares its journal on a thread of its own. So the removal is repeated
//! until it succeeds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// The longest that an agent may go on writing after the end of its test.
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// Where temporary files go.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap().keep())
    }

    /// In memory, where syncing costs nothing. Without such a place, where temporary files go.
    pub(crate) fn in_memory() -> Self {
        // Directories of this name are looked for after the tests (scripts/leftovers.py).
        let made = tempfile::Builder::new().prefix("rs-").tempdir_in("/dev/shm");
        made.map_or_else(|_| Self::new(), |directory| Self(directory.keep()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let begun = Instant::now();
        while fs::remove_dir_all(&self.0).is_err() && self.0.exists() && begun.elapsed() < LONGEST {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_directory_is_removed_while_files_are_made_in_it() {
    for _ in 0..20 {
        let directory = Directory::new();
        let path = directory.path().to_owned();
        let at = path.clone();
        let writer =
            thread::spawn(move || (0..2000).take_while(|n| fs::write(at.join(n.to_string()), "").is_ok()).count());
        while fs::read_dir(&path).unwrap().count() < 20 {}
        drop(directory);
        writer.join().unwrap();
        assert!(!path.exists());
    }
}
