//! Landlock: <https://docs.kernel.org/userspace-api/landlock.html>.
//!
//! What connects to a UNIX socket by its path needs no right here: up to version 6 of Landlock, which is what the crate knows,
//! the file's own permissions decide. Looking whether a file is there and of what size needs none either.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use super::list::{May, Place};

/// The newest that is asked for. It is what was tried; a newer kernel does the same with it.
const NEWEST: ABI = ABI::V6;

/// What a thread, and all that it starts, may reach.
#[derive(Debug, Default)]
pub(crate) struct Rules<'a> {
    /// Folders and files by name. One that is not there is left out.
    pub(crate) places: BTreeSet<Place>,
    /// Files that are open, by which file it is and not by its name.
    pub(crate) files: Vec<(&'a OwnedFd, May)>,
    /// TCP ports to listen on.
    pub(crate) ports: BTreeSet<u16>,
    /// TCP ports to connect to.
    pub(crate) connects: BTreeSet<u16>,
}

/// Confines this thread, and those that it starts from now on, for good. `CompatLevel` says whether less than all is good enough.
pub(crate) fn confine_thread(rules: &Rules<'_>, level: CompatLevel) -> Result<RestrictionStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(level)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    let mut created = ruleset.create()?.set_compatibility(level);
    for place in &rules.places {
        let Some(found) = existing(place) else { continue };
        let Ok(fd) = PathFd::new(&found.path) else { continue };
        let is_folder = found.path.is_dir();
        created = created.add_rule(PathBeneath::new(fd, rights(found.may, is_folder)))?;
    }
    for (file, may) in &rules.files {
        created = created.add_rule(PathBeneath::new(*file, file_rights(*may, is_device(file))))?;
    }
    for port in &rules.ports {
        created = created.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    for port in &rules.connects {
        created = created.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    created.restrict_self()
}

/// Whether the kernel does all that is asked for.
pub(super) fn is_whole(status: &RestrictionStatus) -> bool {
    status.ruleset == RulesetStatus::FullyEnforced
}

/// Of a folder that only has to be watched the names above will do until it is there: libvirt makes it with the first
/// snapshot.
fn existing(place: &Place) -> Option<Place> {
    let is_there = |path: &&Path| path.exists();
    let path = match place.may {
        May::List => place.path.ancestors().find(is_there)?,
        _ => Some(place.path.as_path()).filter(is_there)?,
    };
    Some(Place { path: path.to_owned(), may: place.may })
}

fn rights(may: May, is_folder: bool) -> BitFlags<AccessFs> {
    if !is_folder {
        return file_rights(may, false);
    }
    let files =
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::RemoveFile | AccessFs::MakeReg;
    match may {
        May::List => AccessFs::ReadDir.into(),
        May::Read | May::Run | May::Device => AccessFs::ReadFile | AccessFs::ReadDir,
        May::Images => files | AccessFs::ReadDir,
        May::Shared => files | AccessFs::ReadDir | AccessFs::MakeDir | AccessFs::RemoveDir,
        May::Keep => files | AccessFs::ReadDir | AccessFs::MakeDir | AccessFs::Refer,
    }
}

fn file_rights(may: May, is_device: bool) -> BitFlags<AccessFs> {
    // What a device is asked besides reading and writing: how large it is.
    let asking: BitFlags<AccessFs> = if is_device { AccessFs::IoctlDev.into() } else { BitFlags::EMPTY };
    match may {
        May::List => BitFlags::EMPTY,
        May::Read => asking | AccessFs::ReadFile,
        May::Run => AccessFs::ReadFile | AccessFs::Execute,
        May::Device | May::Images | May::Shared | May::Keep => {
            asking | AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate
        }
    }
}

fn is_device(file: &OwnedFd) -> bool {
    fstat(file).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice)
}

/// Which file this is now, without opening it for anything.
pub(crate) fn handle(path: &Path) -> rustix::io::Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
