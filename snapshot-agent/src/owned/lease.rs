//! Leases: <https://man7.org/linux/man-pages/man2/F_GETLEASE.2const.html>.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// From linux/fcntl.h; the crate has it for other systems only.
const F_SETSIG: c_int = 10;

/// Whether anybody but us has a file open, whatever for: nobody is given a lease for writing then. It is given back at once. Who
/// opens the file in between waits for that moment.
pub(super) fn is_open_elsewhere(file: &File) -> io::Result<bool> {
    // The signal by which the kernel would tell us that somebody waits; the default one ends the process.
    set(file, F_SETSIG, libc::SIGURG)?;
    match set(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => set(file, libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

fn set(file: &File, what: c_int, to: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as the reference, and these commands take a number.
    match unsafe { libc::fcntl(file.as_raw_fd(), what, to) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// What is being started by another thread of the tests has all files open for a moment.
    fn free(file: &File) {
        let start = Instant::now();
        while is_open_elsewhere(file).unwrap() {
            assert!(start.elapsed() < Duration::from_secs(30), "nobody has it open");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn whoever_has_it_open_is_seen_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        free(&file);
        let other = File::open(&path).unwrap();
        assert!(is_open_elsewhere(&file).unwrap(), "for reading");
        drop(other);
        // A command keeps what it was given for its children.
        let start = |input| std::process::Command::new("sleep").arg("60").stdin(input).spawn();
        let mut sleeper = start(File::open(&path).unwrap()).unwrap();
        let by_another = is_open_elsewhere(&file);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(by_another.unwrap(), "by another process");
        free(&file);
    }
}
