//! What an agent has to remember of directories that it shares.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Kept in the state directory of the agent.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    /// Which agent this is: another host may have been given the same name.
    pub(super) instance: Uuid,
    noted: Mutex<BTreeSet<PathBuf>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    instance: Uuid,
    /// Directories in which there is a note of this host, or may be.
    #[serde(default)]
    noted: BTreeSet<PathBuf>,
}

impl Memory {
    /// What was kept; a new agent where nothing was, which is kept if it is `needed`.
    pub(super) fn open(state_dir: &Path, needed: bool) -> io::Result<Self> {
        let path = state_dir.join("shared.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let Kept { instance, noted } = serde_json::from_slice(&bytes)?;
                Ok(Self { path, instance, noted: Mutex::new(noted) })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let new = Self { path, instance: Uuid::new_v4(), noted: Mutex::default() };
                if needed {
                    DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
                    new.keep(&BTreeSet::new())?;
                }
                Ok(new)
            }
            Err(error) => Err(error),
        }
    }

    /// Directories in which there may be a note of this host.
    pub(super) fn noted(&self) -> BTreeSet<PathBuf> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// There may be one in this directory from now on, or there is none any more.
    pub(super) fn note(&self, directory: &Path, is_noted: bool) -> io::Result<()> {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = noted.clone();
        let changed = if is_noted { now.insert(directory.to_owned()) } else { now.remove(directory) };
        if changed {
            self.keep(&now)?;
            *noted = now;
        }
        Ok(())
    }

    fn keep(&self, noted: &BTreeSet<PathBuf>) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(&Kept { instance: self.instance, noted: noted.clone() })?;
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
}
