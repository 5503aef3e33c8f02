//! Storage that does not respond: files whose open() does not return, and a file system whose server is dead.
//!
//! Both are the kernel's own ways of waiting for a process: a permission event of fanotify, and a request of FUSE. Whoever opens
//! the file, or looks the path up, waits in the kernel as for a file server that is gone, until this process lets go.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Files whose open() does not return, for anybody, until this is dropped.
#[derive(Debug)]
pub struct HungFiles {
    /// With its end all who wait are let on.
    _group: OwnedFd,
}

impl HungFiles {
    /// Has the next open() of each of these files wait; of a directory, that of itself and of each file in it.
    pub fn new<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> io::Result<Self> {
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_UNLIMITED_QUEUE;
        // SAFETY: a system call on numbers.
        let group = unsafe { libc::fanotify_init(flags, libc::O_RDONLY as libc::c_uint) };
        if group < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just now, and nobody else has it.
        let group = unsafe { OwnedFd::from_raw_fd(group) };
        for path in paths {
            let of_directory = if path.as_ref().is_dir() { libc::FAN_EVENT_ON_CHILD | libc::FAN_ONDIR } else { 0 };
            let path = c_path(path.as_ref())?;
            // SAFETY: the path is a string that outlives the call.
            let marked = unsafe {
                libc::fanotify_mark(
                    group.as_raw_fd(),
                    libc::FAN_MARK_ADD,
                    libc::FAN_OPEN_PERM | of_directory,
                    libc::AT_FDCWD,
                    path.as_ptr(),
                )
            };
            if marked < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { _group: group })
    }
}

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const INIT: u32 = 26;
const FORGETS: [u32; 2] = [2, 42];
/// How often it is looked whether the server is dead.
const POLL_NANOSECONDS: i64 = 20_000_000;
/// A request's header (`fuse_in_header`): length, operation, number.
const HEADER_BYTES: usize = 40;

/// A file system, with nothing but an empty directory in it, whose server can be dead: then it answers nothing.
#[derive(Debug)]
pub struct FileServer {
    point: PathBuf,
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Server {
    connection: File,
    is_dead: AtomicBool,
    is_over: AtomicBool,
}

impl FileServer {
    /// Mounts it there.
    pub fn mount(point: &Path) -> io::Result<Self> {
        let connection = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options = CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0", connection.as_raw_fd()))?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        let target = c_path(point)?;
        // SAFETY: strings that outlive the call.
        let mounted = unsafe {
            libc::mount(c"server".as_ptr(), target.as_ptr(), c"fuse.test".as_ptr(), flags, options.as_ptr().cast())
        };
        if mounted < 0 {
            return Err(io::Error::last_os_error());
        }
        let server = Arc::new(Server { connection, is_dead: AtomicBool::new(false), is_over: AtomicBool::new(false) });
        let thread = std::thread::spawn({
            let server = Arc::clone(&server);
            move || while server.serve().is_ok() {}
        });
        Ok(Self { point: point.to_owned(), server, thread: Some(thread) })
    }

    /// From now on it answers nothing. Requests stay in the kernel, where whoever waits for them can be killed, as with NFS.
    pub fn die(&self) {
        self.server.is_dead.store(true, Ordering::SeqCst);
    }

    /// It answers again, also what was asked meanwhile.
    pub fn come_back(&self) {
        self.server.is_dead.store(false, Ordering::SeqCst);
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.come_back();
        if let Ok(point) = c_path(&self.point) {
            // SAFETY: a string that outlives the call.
            unsafe { libc::umount2(point.as_ptr(), libc::MNT_DETACH) };
        }
        self.server.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Server {
    fn serve(&self) -> io::Result<()> {
        if self.is_over.load(Ordering::SeqCst) {
            return Err(io::Error::other("it is over"));
        }
        let mut asked = [PollFd::new(&self.connection, PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: POLL_NANOSECONDS };
        let is_asked = poll(&mut asked, Some(&moment))? > 0;
        if self.is_dead.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_nanos(POLL_NANOSECONDS.unsigned_abs()));
            return Ok(());
        }
        if !is_asked {
            return Ok(());
        }
        let mut request = vec![0; 1 << 20];
        let length = (&self.connection).read(&mut request)?;
        let request = request.get(..length).unwrap_or_default();
        let (Some(operation), Some(number)) = (request.get(4..8), request.get(8..16)) else {
            return Err(io::Error::other(format!("a request of {length} bytes, without its {HEADER_BYTES}")));
        };
        let operation = u32::from_ne_bytes(operation.try_into().map_err(io::Error::other)?);
        let number = u64::from_ne_bytes(number.try_into().map_err(io::Error::other)?);
        self.answer(operation, number)
    }

    fn answer(&self, operation: u32, number: u64) -> io::Result<()> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let body = match operation {
            INIT => words(&[7, 31, 0, 0, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            // How long it may be remembered, then the attributes; all 0 but the kind, the links and the block size.
            GETATTR => {
                let mut attributes = vec![0_u32; 26];
                for (at, word) in [(4, 1), (19, libc::S_IFDIR | 0o755), (20, 2), (24, 4096)] {
                    if let Some(place) = attributes.get_mut(at) {
                        *place = word;
                    }
                }
                words(&attributes)
            }
            // 1000 blocks, all free, of 4096 bytes.
            STATFS => words(&[1000, 0, 1000, 0, 1000, 0, 0, 0, 0, 0, 4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0]),
            forget if FORGETS.contains(&forget) => return Ok(()),
            _ => Vec::new(),
        };
        // Of what it does not know the kernel asks in another way.
        let error = match operation {
            _ if !body.is_empty() => 0,
            LOOKUP => -libc::ENOENT,
            _ => -libc::ENOSYS,
        };
        let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
        let mut answer = [length.to_ne_bytes(), error.to_ne_bytes()].concat();
        answer.extend(number.to_ne_bytes());
        answer.extend(body);
        match (&self.connection).write_all(&answer) {
            // Whoever asked has been killed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const MOMENT: Duration = Duration::from_millis(300);
    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_file_that_hangs_is_opened_when_it_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, "content").unwrap();
        let hung = HungFiles::new([&path]).unwrap();
        let (tell, told) = channel();
        std::thread::spawn(move || tell.send(std::fs::read_to_string(path).unwrap()));
        assert!(told.recv_timeout(MOMENT).is_err());
        drop(hung);
        assert_eq!(told.recv_timeout(SOON).unwrap(), "content");
    }

    #[test]
    fn a_directory_that_hangs_holds_up_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("image"), "content").unwrap();
        let hung = HungFiles::new([folder.path()]).unwrap();
        let (tell, told) = channel();
        for path in [folder.path().to_owned(), folder.path().join("image")] {
            let tell = tell.clone();
            std::thread::spawn(move || tell.send(std::fs::File::open(path).is_ok()));
        }
        assert!(told.recv_timeout(MOMENT).is_err());
        drop(hung);
        assert_eq!([(); 2].map(|()| told.recv_timeout(SOON)), [Ok(true); 2]);
    }

    #[test]
    fn a_file_server_that_is_dead_answers_when_it_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let server = FileServer::mount(folder.path()).unwrap();
        let space = |path: &Path| rustix::fs::statvfs(path).map(|stat| stat.f_blocks * stat.f_frsize);
        assert_eq!(space(folder.path()), Ok(4_096_000));
        assert!(folder.path().is_dir() && !folder.path().join("image").exists());
        server.die();
        let (tell, told) = channel();
        let path = folder.path().to_owned();
        std::thread::spawn(move || tell.send(space(&path)));
        assert!(told.recv_timeout(MOMENT).is_err());
        server.come_back();
        assert_eq!(told.recv_timeout(SOON).unwrap(), Ok(4_096_000));
    }
}
