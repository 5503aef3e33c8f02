//! Images that no VM of this host names: clones that are not defined, or on another host of shared storage; copies; disks that were
//! detached. What they depend on stays, whoever created it; and so does what other hosts say that they use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use snapshot_core::ids::VmId;
use snapshot_core::{Error, Reason};

use crate::beneath::{Beneath, out_of_reach};
use crate::bounded::files::resolved;
use crate::hypervisor::directory_images::dependencies;
use crate::hypervisor::{GUARDED, Observed};

/// Images in the directories of these files, and in those of the host, that depend on others, each with what it depends on.
pub(super) fn images<'a>(
    directories: &Beneath,
    files: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeMap<PathBuf, BTreeSet<PathBuf>>, Error> {
    let beside = files.into_iter().filter_map(|path| Some(Path::new(path).parent()?.to_owned()));
    dependencies(&beside.collect(), &directories.directories()).map_err(|(path, error)| {
        if !directories.may_read(&path) {
            return out_of_reach(&path, "read_dirs");
        }
        let message = format!(
            "{} cannot be read ({error}), so it is not known which images depend on those of the VM; nothing was removed; make it \
             readable, and ask again",
            path.display()
        );
        Error::new(Reason::ImageUnavailable, message).with("path", path.display().to_string())
    })
}

/// The files beside these that VMs of other hosts use, as they say. While one of those does not say what it uses, all of these.
pub(super) fn used_by_other_hosts<'a>(
    directories: &Beneath,
    files: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeSet<String>, Error> {
    let Some(shared) = directories.shared() else { return Ok(BTreeSet::new()) };
    let files: Vec<&str> = files.into_iter().collect();
    let home = |path: &&str| Some(resolved(Path::new(path)).parent()?.to_owned());
    let beside: BTreeSet<PathBuf> = files.iter().filter_map(home).collect();
    // Asked first: what they have said by then is in their notes.
    let silent = shared.silent(&beside)?;
    let mut used = shared.used_elsewhere(&beside)?;
    if silent.is_some() {
        let shared = files.into_iter().filter(|path| home(path).is_some_and(|home| shared.is_shared(&home)));
        used.extend(
            shared.flat_map(|path| [path.to_owned(), resolved(Path::new(path)).to_string_lossy().into_owned()]),
        );
    }
    Ok(used)
}

/// A host that does not say now what it uses of the directories of these files.
pub(super) fn silent_host<'a>(
    directories: &Beneath,
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<Option<String>, Error> {
    let Some(shared) = directories.shared() else { return Ok(None) };
    let beside = files.into_iter().filter_map(|path| Some(resolved(path).parent()?.to_owned()));
    shared.silent(&beside.collect())
}

/// The VM of another host that uses a file, as that host says, where none of the hosts but `silent` was found to say nothing.
pub(super) fn user_on_other_host(
    directories: &Beneath,
    path: &Path,
    silent: Option<&String>,
) -> Result<Option<String>, Error> {
    let Some(shared) = directories.shared() else { return Ok(None) };
    let directory: BTreeSet<PathBuf> = path.parent().into_iter().map(Path::to_owned).collect();
    if let Some(host) = silent
        && directory.iter().any(|directory| shared.is_shared(directory))
    {
        let message = format!(
            "host {host} may use the file, and its agent does not say what that host uses: start that agent; if the host will never be \
             used again, remove what it has written in .ravada-snapshots"
        );
        return Err(Error::new(Reason::ImageUnavailable, message).with("path", path.display().to_string()));
    }
    shared.used_elsewhere(&directory)?;
    let users = shared.other_users(path)?;
    Ok(users.first().map(|user| format!("{} of host {}", user.name, user.host)))
}

/// The files that images in the directories of a VM's images, or in those of the host, depend on. `own` are the files of the VM that may
/// be merged or removed: they keep nothing.
pub(super) fn reached_by_strangers<'a>(
    vm: VmId,
    directories: &Beneath,
    files: impl IntoIterator<Item = &'a str>,
    own: &BTreeSet<String>,
) -> Result<BTreeSet<String>, Error> {
    let beside: Vec<&str> = files.into_iter().collect();
    let of_vm = |error: Error| error.with("vm", proto::names::vm(vm));
    let elsewhere = used_by_other_hosts(directories, beside.iter().copied()).map_err(of_vm)?;
    let images = images(directories, beside).map_err(of_vm)?;
    let is_own = |path: &Path| {
        let path = path.to_string_lossy();
        // A file may have a second name during a revert.
        own.contains(path.strip_suffix(GUARDED).unwrap_or(&path))
    };
    let strangers = images.into_iter().filter(|(path, _)| !is_own(path));
    let below = strangers.flat_map(|(_, below)| below).map(|path| path.to_string_lossy().into_owned());
    Ok(below.chain(elsewhere).collect())
}

/// The same for a VM as it was seen. What it and its snapshots reach, and what was given up, nobody but the VM keeps.
pub(crate) fn kept_by_strangers(
    directories: &Beneath,
    seen: &Observed,
    given_up: &BTreeSet<String>,
) -> Result<BTreeSet<String>, Error> {
    let layers = &seen.layers;
    let reached = layers.reached(&BTreeSet::new()).into_iter().map(str::to_owned);
    let own = given_up.union(&layers.discarded).filter(|path| layers.is_created(path)).cloned();
    // What a revert has left may be in no snapshot, and no backing chain, of the VM any more.
    let files = layers.paths().into_iter().chain(given_up.iter().map(String::as_str));
    reached_by_strangers(seen.vm.id, directories, files, &reached.chain(own).collect())
}

#[cfg(test)]
mod tests;
