//! Whether other agents know now what their hosts use.
//!
//! A note says what VMs used when it was written. While an agent does not run its host's VMs are defined and given disks all the same. So
//! each agent renews the time of a file, `HOST.alive`, in every directory that is shared, whenever all that libvirt has told it is in its
//! notes. Before another one removes or merges a file it waits until each of the others has renewed its own twice: the first may have been
//! decided before, and have waited for its storage. Times are compared for being others, and with no clock. A host that does not renew is
//! *silent*: it may use anything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use snapshot_core::Error;

use super::{NOTES, SharedStorage, new_problem, unreadable};
use crate::beneath::Beneath;
use crate::bounded::files;

/// Of the name of the file, after the host's.
const ALIVE: &str = "alive";

/// The time between two renewals.
pub(crate) const PAUSE: Duration = Duration::from_millis(400);
/// How many of them are waited for.
const RENEWALS: u32 = 2;
/// How long the others are waited for.
const WAIT: Duration = Duration::from_secs(3);
/// A host whose file has not been seen to be renewed for this long is not waited for.
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
        if let Some(why) = new_problem(&self.unrenewed, root, places.touch_note(&path)) {
            tracing::warn!(path = %path.display(), why, "other hosts cannot be told that all this one uses is in its notes");
        }
    }

    /// A host that does not say now what it uses of these directories. Waits for those that do.
    pub(crate) fn silent(&self, directories: &BTreeSet<PathBuf>) -> Result<Option<String>, Error> {
        let within = |directory: &PathBuf| {
            let shared = directory.ancestors().filter(|part| self.is_shared(part));
            shared.map(|part| part.join(NOTES)).collect::<Vec<_>>()
        };
        for notes in directories.iter().flat_map(within).collect::<BTreeSet<_>>() {
            if let Some(host) = self.silent_in(&notes)? {
                return Ok(Some(host));
            }
        }
        Ok(None)
    }

    fn silent_in(&self, notes: &Path) -> Result<Option<String>, Error> {
        let hosts = self.hosts_in(notes)?.into_iter();
        let mut renewals: BTreeMap<String, (Option<SystemTime>, u32)> =
            hosts.map(|host| Ok((host.clone(), (self.renewed(notes, &host)?, 0)))).collect::<Result<_, Error>>()?;
        let begun = Instant::now();
        loop {
            for (host, (last, count)) in &mut renewals {
                let renewed = self.renewed(notes, host)?;
                if renewed != *last {
                    (*last, *count) = (renewed, *count + 1);
                }
            }
            // One whose file is not there will never be used again, as its administrator has just said.
            let is_late =
                |(_, (last, count)): &(&String, &(Option<SystemTime>, u32))| last.is_some() && *count < RENEWALS;
            let Some((host, _)) = renewals.iter().find(is_late) else { return Ok(None) };
            let is_long =
                renewals.iter().filter(is_late).all(|(host, (last, _))| self.is_long_silent(notes, host, *last));
            if is_long || begun.elapsed() > WAIT {
                tracing::warn!(host, path = %notes.display(), "the agent of a host does not say what that uses: nothing is removed");
                return Ok(Some(host.clone()));
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Whether this is the time at which a host renewed its file for so long that it is not waited for.
    fn is_long_silent(&self, notes: &Path, host: &str, renewed: Option<SystemTime>) -> bool {
        let mut known = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(notes.join(host)).or_insert((renewed, Instant::now()));
        if known.0 != renewed {
            *known = (renewed, Instant::now());
        }
        known.1.elapsed() > LONG
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
