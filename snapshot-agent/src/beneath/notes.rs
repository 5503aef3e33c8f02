//! Small files beside images, for other hosts.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, fsync, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::{Beneath, refused};
use crate::bounded::files;

impl Beneath {
    /// Writes a file as a whole, in a directory that is made if it is not there. When this returns, a power cut does not lose it.
    pub(crate) fn write_note(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let _access = files::enter(path)?;
        let (directory, name) = self.notes_directory(path)?;
        let mut new = name.to_owned();
        new.push(".new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&directory, &new, flags, Mode::from_raw_mode(0o644))?);
        file.write_all(bytes)?;
        file.sync_all()?;
        renameat(&directory, &new, &directory, name)?;
        Ok(fsync(&directory)?)
    }

    /// Sets the time of a file that holds nothing else to now, and makes it where it is not there.
    pub(crate) fn touch_note(&self, path: &Path) -> io::Result<()> {
        let _access = files::enter(path)?;
        let (directory, name) = self.notes_directory(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&directory, name, flags, Mode::from_raw_mode(0o644))?);
        // Written, because a process in the sandbox may not set the times of files.
        file.write_all_at(b"\n", 0)
    }

    /// The directory of a note, which is made if it is not there, and the note's name.
    fn notes_directory<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let directory = path.parent().ok_or_else(|| refused(path, "names no file"))?;
        let (above, name) = self.parent(directory)?;
        match mkdirat(&above, &name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&above, &name, flags, Mode::empty())?;
        Ok((directory, path.file_name().ok_or_else(|| refused(path, "names no file"))?))
    }

    /// Removes it, and its directory if nothing is left in that.
    pub(crate) fn remove_note(&self, path: &Path) -> io::Result<()> {
        self.unlink(path)?;
        let _access = files::enter(path)?;
        let (above, name) = self.parent(path.parent().ok_or_else(|| refused(path, "names no file"))?)?;
        match unlinkat(&above, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
