//! Whether other agents know now what their hosts use.
//!
//! A note says what VMs used when it was written. While an agent does not run its host's VMs are defined and given disks all the same. So
//! each agent renews the time of a file, `HOST.alive`, in every directory that is shared, whenever all that libvirt has told it is in its
//! notes. Before another one removes or merges a file it asks for the time, by a file of its own on the same file system (`HOST.asked`),
//! and waits until each of the others has renewed its own after that. A host that does not is *silent*: it may use anything.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use snapshot_core::{Error, Reason};

use super::{NOTES, SharedStorage, unreadable};
use crate::beneath::Beneath;
use crate::bounded::files;

/// Of the names of the files, after the host's.
const ALIVE: &str = "alive";
const ASKED: &str = "asked";

/// The time between two renewals.
pub(crate) const PAUSE: Duration = Duration::from_millis(400);
/// From a change of a VM until it is in the note, at the most, of an agent that has nothing else to do.
const SETTLED: Duration = Duration::from_millis(300);
/// How long the others are waited for.
const WAIT: Duration = Duration::from_secs(3);
/// A host that has not renewed its file for this long is not waited for.
const LONG: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(50);

impl SharedStorage {
    /// The directories that are shared, as they are configured, without links.
    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Says that all that this host uses below a directory is in its notes now.
    pub(crate) fn renew(&self, places: &Beneath, root: &Path) {
        if self.is_unwritten_below(root) || !files::is_dir(root) {
            return;
        }
        let path = root.join(NOTES).join(format!("{}.{ALIVE}", self.host));
        if let Err(error) = places.touch_note(&path) {
            tracing::warn!(path = %path.display(), %error, "what this host uses cannot be said to be known");
        }
    }

    /// A host that does not say now what it uses of these directories. Waits for those that do.
    pub(crate) fn silent(&self, places: &Beneath, directories: &BTreeSet<PathBuf>) -> Result<Option<String>, Error> {
        let within = |directory: &PathBuf| {
            let shared = directory.ancestors().filter(|part| self.is_shared(part));
            shared.map(|part| part.join(NOTES)).collect::<Vec<_>>()
        };
        for notes in directories.iter().flat_map(within).collect::<BTreeSet<_>>() {
            if let Some(host) = self.silent_in(places, &notes)? {
                return Ok(Some(host));
            }
        }
        Ok(None)
    }

    fn silent_in(&self, places: &Beneath, notes: &Path) -> Result<Option<String>, Error> {
        let hosts = self.hosts_in(notes)?;
        if hosts.is_empty() {
            return Ok(None);
        }
        let asked = notes.join(format!("{}.{ASKED}", self.host));
        let asked = places.touch_note(&asked).map_err(|error| {
            let message = format!(
                "{} cannot be written ({error}), so it is not known which images other hosts use; nothing was removed",
                asked.display()
            );
            Error::new(Reason::ImageUnavailable, message).with("path", asked.display().to_string())
        })?;
        let begun = Instant::now();
        loop {
            let late = hosts.iter().find_map(|host| match self.renewed(notes, host) {
                Ok(Some(renewed)) if renewed > asked + SETTLED => None,
                // Its administrator has just said that it will never be used again.
                Ok(None) => None,
                Ok(Some(renewed)) => Some(Ok((host, renewed))),
                Err(error) => Some(Err(error)),
            });
            let Some((host, renewed)) = late.transpose()? else { return Ok(None) };
            let is_long = asked.duration_since(renewed).is_ok_and(|since| since > LONG);
            if is_long || begun.elapsed() > WAIT {
                tracing::warn!(host, path = %notes.display(), "the agent of a host does not say what that uses: nothing is removed");
                return Ok(Some(host.clone()));
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// The other hosts whose agents have said there what they use.
    fn hosts_in(&self, notes: &Path) -> Result<BTreeSet<String>, Error> {
        let entries = match files::read_dir(notes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(unreadable(notes, &error)),
        };
        let mut hosts = BTreeSet::new();
        for entry in entries {
            let path = entry.map_err(|error| unreadable(notes, &error))?.path();
            if path.extension().is_some_and(|last| last == ALIVE)
                && let Some(host) = path.file_stem().and_then(|name| name.to_str())
                && host != self.host.as_str()
            {
                hosts.insert(host.to_owned());
            }
        }
        Ok(hosts)
    }

    /// When a host last said so, by the clock of the file system.
    fn renewed(&self, notes: &Path, host: &str) -> Result<Option<SystemTime>, Error> {
        let path = notes.join(format!("{host}.{ALIVE}"));
        // Opened, and not only looked at: a network file system asks its server then.
        match files::open(&path).and_then(|file| file.metadata()).and_then(|found| found.modified()) {
            Ok(renewed) => Ok(Some(renewed)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&path, &error)),
        }
    }

    /// Other hosts whose agents have said nothing for long, each with the seconds since; to be told to an administrator.
    pub(crate) fn long_silent(&self, directory: &Path) -> Result<Vec<(String, u64)>, Error> {
        let notes = directory.join(NOTES);
        let mut found = Vec::new();
        for host in self.hosts_in(&notes)? {
            let since = self.renewed(&notes, &host)?.and_then(|renewed| renewed.elapsed().ok());
            found.extend(since.filter(|since| *since > LONG).map(|since| (host, since.as_secs())));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
