//! Folders that a service writes to, and the space there.

use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, StatVfs};

use crate::Finding;

/// Less than this is full for what comes next: a snapshot's own margin is larger.
const FULL_BYTES: u64 = 64 << 20;
/// Less than these parts of the whole are to be looked after, and broken.
const LOW_PERCENT: u64 = 10;
const FULL_PERCENT: u64 = 2;

/// Whether a folder is there, can be written to, and has space. Nothing is left in it.
pub fn folder(check: &'static str, path: &Path) -> Vec<Finding> {
    let subject = path.display().to_string();
    if let Some(broken) = missing(check, path) {
        return vec![broken];
    }
    if let Err(error) = try_to_write(path) {
        let (seen, remedy) = match error {
            rustix::io::Errno::ROFS => (
                "its file system is read-only",
                "find out why (dmesg: an I/O error makes it so), and mount it read-write",
            ),
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => (
                "may not be written to",
                "give it to the user that the service runs as, without the immutable flag (lsattr); run doctor as that user",
            ),
            _ => ("cannot be written to", "look at its file system and its mount options"),
        };
        return vec![Finding::fail(check, subject, format!("{seen} ({error})"), remedy)];
    }
    vec![Finding::ok(check, subject, "can be written to"), space(path)]
}

/// Whether a folder that is only read from is there.
pub fn readable_folder(check: &'static str, path: &Path) -> Finding {
    missing(check, path).unwrap_or_else(|| match std::fs::read_dir(path) {
        Ok(_) => Finding::ok(check, path.display().to_string(), "can be read"),
        Err(error) => Finding::fail(
            check,
            path.display().to_string(),
            format!("cannot be read: {error}"),
            "let the user that the service runs as read it",
        ),
    })
}

fn missing(check: &'static str, path: &Path) -> Option<Finding> {
    let seen = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return None,
        Ok(_) => "is no folder".to_owned(),
        Err(error) => format!("cannot be entered: {error}"),
    };
    Some(Finding::fail(check, path.display().to_string(), seen, "make it or mount it, or correct the configuration"))
}

/// A file without a name, gone as soon as it is closed. Where a file system has none (NFS), the rights are asked for.
fn try_to_write(path: &Path) -> Result<(), rustix::io::Errno> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)
        }
        // That it is full is told of its space.
        Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// How full the file system of a path is, for whoever is not root.
pub fn space(path: &Path) -> Finding {
    let subject = path.display().to_string();
    match rustix::fs::statvfs(path) {
        Ok(found) => judge(subject, &found),
        Err(error) => Finding::warn("space", subject, format!("cannot be told: {error}"), "look at it with df"),
    }
}

fn judge(subject: String, found: &StatVfs) -> Finding {
    let (free, total) = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize);
    let percent = (free * 100).checked_div(total).unwrap_or(100);
    let nodes = (found.f_favail * 100).checked_div(found.f_files).unwrap_or(100);
    let seen = format!("{} MiB of {} MiB free ({percent} %)", free >> 20, total >> 20);
    let remedy = "make space there (delete snapshots, move images) or enlarge it; snapshots are refused with SPACE_LOW \
                  or CATALOGUE_UNAVAILABLE when it is full";
    if percent < FULL_PERCENT || free < FULL_BYTES {
        Finding::fail("space", subject, format!("almost full: {seen}"), remedy)
    } else if nodes < FULL_PERCENT {
        Finding::fail(
            "space",
            subject,
            format!("{nodes} % of its inodes are free"),
            "remove files there that nobody needs",
        )
    } else if percent < LOW_PERCENT {
        Finding::warn("space", subject, format!("low: {seen}"), remedy)
    } else {
        Finding::ok("space", subject, seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn a_folder_that_can_be_written_to_is_left_empty() {
        let temporary = tempfile::tempdir().unwrap();
        assert_eq!(folder("folder", temporary.path())[0].level, Level::Ok);
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
        let file = temporary.path().join("file");
        assert_eq!(folder("folder", &file)[0].level, Level::Fail, "it is not there");
        std::fs::write(&file, "").unwrap();
        assert_eq!(folder("folder", &file)[0].level, Level::Fail, "it is a file");
        assert_eq!(readable_folder("folder", &file).level, Level::Fail);
        assert_eq!(readable_folder("folder", temporary.path()).level, Level::Ok);
    }

    #[test]
    fn space_is_judged_by_what_is_left_of_bytes_and_inodes() {
        let mut found = rustix::fs::statvfs("/").unwrap();
        (found.f_frsize, found.f_blocks, found.f_files) = (4096, 1 << 20, 1000);
        let mut judged = |free: u64, nodes: u64| {
            (found.f_bavail, found.f_favail) = (free, nodes);
            judge("/".to_owned(), &found).level
        };
        assert_eq!(judged(1 << 19, 500), Level::Ok);
        assert_eq!(judged(1 << 16, 500), Level::Warn);
        assert_eq!(judged(1 << 13, 500), Level::Fail);
        assert_eq!(judged(1 << 19, 1), Level::Fail);
    }
}
