//! Files beneath the folders of images, and nothing else.
//!
//! Where files are is told by libvirt and by images, and thus in the end by who defines machines, who has uploaded an image, and
//! who may write in a folder of images, QEMU among them. Any of them may name a file that is no image, or put a link in a
//! path's way, also in the moment between a look and the deed. So every effect on a file goes through here:
//!
//! 1. The configured folders are opened once, when the agent starts. Links on the way to them are an administrator's.
//! 2. A path has to begin with one of them, and its directories are opened from there, one after the other. No symbolic link is
//!    followed and no `..` is accepted, so the path cannot leave `image_dirs`, whatever others rename meanwhile. `openat2` would
//!    resolve it in one call, but systemd makes that fail with ENOSYS under `RestrictSUIDSGID=`.
//! 3. The deed is done in the folder that was found, on a name that is not followed either (`unlinkat`, `linkat`, `renameat`,
//!    `O_NOFOLLOW`).
//!
//! Where a machine is given a path that leads through links its images are called by their one true path
//! (`hypervisor/overlays.rs`), which has none.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, fstat, linkat, open, openat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;
use snapshot_core::{Error, Reason};

use crate::bounded::files;
use crate::shared_storage::SharedStorage;

/// The folders.
#[derive(Debug)]
pub struct Beneath {
    roots: Vec<Root>,
    /// Where images may lie that are read.
    read: Vec<PathBuf>,
    is_anywhere: bool,
    /// Those that other hosts use as well; `None` where that is nobody's concern.
    shared: Option<SharedStorage>,
}

#[derive(Debug)]
struct Root {
    named: PathBuf,
    real: PathBuf,
    folder: OwnedFd,
}

impl Beneath {
    /// These folders, as far as they are there; beside them those whose images are only read.
    pub fn open(images: &[PathBuf], read: &[PathBuf]) -> Self {
        let root = |named: &PathBuf| {
            let real = named.canonicalize().ok()?;
            let folder = folder(&real).ok()?;
            Some(Root { named: named.clone(), real, folder })
        };
        let real = |dir: &PathBuf| [dir.canonicalize().ok(), Some(dir.clone())];
        Self {
            roots: images.iter().filter_map(root).collect(),
            read: read.iter().flat_map(real).flatten().collect(),
            is_anywhere: false,
            shared: None,
        }
    }

    /// All there is: for an agent whose reach is not narrowed. Links are followed no more than elsewhere.
    pub fn everything() -> Self {
        let root = PathBuf::from("/");
        let roots = folder(&root).ok().map(|folder| Root { named: root.clone(), real: root, folder });
        Self { roots: roots.into_iter().collect(), read: Vec::new(), is_anywhere: true, shared: None }
    }

    /// With what is known of other hosts that use them.
    #[must_use]
    pub fn sharing(self, shared: SharedStorage) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// What is known of other hosts that use them.
    pub(crate) fn shared(&self) -> Option<&SharedStorage> {
        self.shared.as_ref()
    }

    /// [`Self::everything`], for whoever keeps none.
    pub fn anywhere() -> &'static Self {
        static ANYWHERE: LazyLock<Beneath> = LazyLock::new(Beneath::everything);
        &ANYWHERE
    }

    /// The directories of images that are known, by their true paths; those of an agent that may touch everything are not.
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        let roots = self.roots.iter().filter(|_| !self.is_anywhere).map(|root| root.real.clone());
        roots.chain(self.read.iter().cloned()).collect()
    }

    /// Whether a path, by its spelling, is one of an image that may be touched.
    pub fn has(&self, path: &Path) -> bool {
        self.is_anywhere || self.split(path).is_ok()
    }

    /// Whether it is one of an image that may be read.
    pub fn may_read(&self, path: &Path) -> bool {
        let is_plain = || path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        self.has(path) || (is_plain() && self.read.iter().any(|dir| path.starts_with(dir)))
    }

    /// What has this name, which may be a link; `None` when nothing has.
    pub fn find(&self, path: &Path) -> io::Result<Option<Stat>> {
        let _access = files::enter(path)?;
        let (folder, name) = match self.parent(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            parent => parent?,
        };
        match statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a file that is there. One that is a link is an error, and so is a pipe, which could hold us up.
    pub fn file(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let _access = files::enter(path)?;
        let (folder, name) = self.parent(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&folder, &name, flags, Mode::empty())?;
        match FileType::from_raw_mode(fstat(&file)?.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => Ok(File::from(file)),
            FileType::Symlink => Err(refused(path, "is a link")),
            _ => Err(refused(path, "is not a file")),
        }
    }

    /// An image that is about to be written, by which file it is. One that has another name as well, but for ours while it is
    /// guarded, is somebody else's image, or may be.
    pub fn image(&self, path: &Path, second: &Path) -> io::Result<OwnedFd> {
        let file = self.file(path, OFlags::PATH)?;
        let found = fstat(&file)?;
        let ours = self.find(second)?.is_some_and(|it| (it.st_dev, it.st_ino) == (found.st_dev, found.st_ino));
        let is_device = FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice;
        if !is_device && found.st_nlink > 1 + u64::from(ours) {
            return Err(refused(path, "has another name (a hard link)"));
        }
        Ok(file.into())
    }

    /// Removes a name. Whether it was there.
    pub fn unlink(&self, path: &Path) -> io::Result<bool> {
        let _access = files::enter(path)?;
        let (folder, name) = match self.parent(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            parent => parent?,
        };
        match unlinkat(&folder, &name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a file a second name in its folder; that it has it already is success, and that something else has is an error.
    pub fn link(&self, path: &Path, second: &Path) -> io::Result<()> {
        let _access = files::enter(path)?;
        let (folder, name) = self.parent(path)?;
        let second_name = beside(path, second)?;
        let number = |found: Stat| (found.st_dev, found.st_ino);
        let found = statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(refused(path, "is not a file"));
        }
        let is_new = match linkat(&folder, &name, &folder, second_name, AtFlags::empty()) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        if number(statat(&folder, second_name, AtFlags::SYMLINK_NOFOLLOW)?) == number(found) {
            return Ok(());
        }
        if is_new {
            unlinkat(&folder, second_name, AtFlags::empty())?;
        }
        Err(refused(second, "is another file"))
    }

    /// Gives a file another name in its folder. Nothing may have that.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _access = files::enter(from)?;
        let (folder, name) = self.parent(from)?;
        let new = beside(from, to)?;
        let found = statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(refused(from, "is not a file"));
        }
        match renameat_with(&folder, &name, &folder, new, RenameFlags::NOREPLACE) {
            // A file system that cannot promise that.
            Err(Errno::INVAL | Errno::NOSYS) => Ok(renameat(&folder, &name, &folder, new)?),
            renamed => Ok(renamed?),
        }
    }

    /// Whether the folder that a path names is one of ours, reached without links.
    pub fn has_folder_of(&self, path: &Path) -> io::Result<()> {
        self.parent(path).map(drop)
    }

    /// The folder of a path, and its last name.
    fn parent(&self, path: &Path) -> io::Result<(OwnedFd, OsString)> {
        let (root, rest) = self.split(path)?;
        let name = rest.file_name().ok_or_else(|| refused(path, "names no file"))?.to_owned();
        let mut directory = root.folder.try_clone()?;
        for part in rest.parent().into_iter().flat_map(Path::components) {
            // What is mounted there on demand is mounted for a directory alone.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            directory = match openat(&directory, part.as_os_str(), flags, Mode::empty()) {
                Err(Errno::NOTDIR | Errno::LOOP) if is_link(&directory, part.as_os_str()) => {
                    return Err(refused(path, "leads through a link"));
                }
                opened => opened?,
            };
        }
        Ok((directory, name))
    }

    /// The folder that a path begins with, and the rest of it.
    fn split<'a>(&self, path: &'a Path) -> io::Result<(&Root, &'a Path)> {
        let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let found = self.roots.iter().find_map(|root| {
            let rest = path.strip_prefix(&root.real).or_else(|_| path.strip_prefix(&root.named)).ok()?;
            (!rest.as_os_str().is_empty()).then_some((root, rest))
        });
        found.filter(|_| is_plain).ok_or_else(|| refused(path, "is not in a folder of images"))
    }
}

/// The refusal of what needs an image that is not in one of these folders of the configuration.
pub(crate) fn out_of_reach(path: &Path, key: &str) -> Error {
    let folder = path.parent().unwrap_or(path).display().to_string();
    let message = format!("an image is in {folder}, which is not in {key} of the host's agent");
    let error = Error::new(Reason::ImageOutOfReach, message).with("path", path.display().to_string());
    error.with("folder", folder).with("key", key)
}

fn folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn is_link(directory: &OwnedFd, name: &OsStr) -> bool {
    let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink)
}

fn beside<'a>(path: &Path, second: &'a Path) -> io::Result<&'a OsStr> {
    let name = second.file_name().filter(|_| second.parent() == path.parent());
    name.ok_or_else(|| refused(second, "is in another folder"))
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, format!("{} {why}", path.display()))
}

mod notes;
pub(crate) mod out_of_reach;
#[cfg(test)]
mod tests;
