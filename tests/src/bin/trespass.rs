//! `trespass CONFIG MODE FOLDER PORT`: tries what an agent with this configuration must not be able to, and what it must, and
//! prints of each whether it was let. With MODE `narrowed` it first gives up what an agent does; with `open` nothing. Each thing
//! that is tried is harmless where it works, or undone.
//!
//! FOLDER holds `outside`, `images`, `bases`; on PORT, and on an abstract socket of the number of PORT, somebody listens.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use libc::c_long;
use snapshot_agent::config::Config;
use snapshot_agent::reach::{Enforce, List, enter};

/// Somewhere in the folder, and a port.
struct Scene<'a> {
    folder: &'a Path,
    port: u16,
    /// A process that was started before, and is thus none of ours.
    stranger: i32,
    config: &'a Config,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, mode, folder, port] = arguments.as_slice() else { bail!("usage: trespass CONFIG MODE FOLDER PORT") };
    let config = Config::load(Path::new(config))?;
    let folder = Path::new(folder);
    symlink("/etc/shadow", folder.join("images").join(format!("link-{mode}")))?;
    // It ends when this process does: then nobody can write to it any more.
    let stranger = Command::new("cat").stdin(Stdio::piped()).spawn()?;
    let pid = i32::try_from(stranger.id()).context("a pid")?;
    // libvirt's socket is there before the agent.
    let socket = folder.join(format!("socket-{mode}"));
    let _listening = UnixListener::bind(&socket)?;
    if mode == "narrowed" {
        let reached = enter(&List::of(&config), Enforce::Required)?;
        println!("reached {reached:?}");
    }
    let scene = Scene { folder, port: port.parse()?, stranger: pid, config: &config };
    for (name, tried) in scene.may() {
        println!("may {name}: {}", told(tried));
    }
    println!("may connect to a socket by its path: {}", told(UnixStream::connect(&socket).map(drop)));
    for (name, tried) in scene.files().into_iter().chain(scene.calls()).chain(scene.others()) {
        println!("may not {name}: {}", told(tried));
    }
    Ok(())
}

fn told(tried: io::Result<()>) -> String {
    match tried {
        Ok(()) => "done".to_owned(),
        // It was looked at what was to be done, after whether it may be.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOEXEC | libc::EBADF | libc::EFAULT | libc::EINVAL)) =>
        {
            "done".to_owned()
        }
        Err(error) => format!("refused {error}"),
    }
}

impl Scene<'_> {
    /// What an agent does all day.
    fn may(&self) -> Vec<(&'static str, io::Result<()>)> {
        let images = self.folder.join("images");
        let (image, second) = (images.join("image"), images.join("image.kept"));
        let qemu_img = |arguments: &[&str]| {
            let status = Command::new("qemu-img").args(arguments).stdout(Stdio::null()).status()?;
            if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
        };
        let path = image.display().to_string();
        vec![
            ("run qemu-img", qemu_img(&["create", "-q", "-f", "qcow2", &path, "1M"])),
            ("let it write an image", qemu_img(&["snapshot", "-c", "one", &path])),
            ("guard an image", fs::hard_link(&image, &second)),
            ("rename and remove one", fs::rename(&image, images.join("other")).and_then(|()| fs::remove_file(&second))),
            ("read what lies below", File::open(self.folder.join("bases/base")).map(drop)),
            ("keep its state", fs::create_dir_all(self.config.state_dir.join("owned"))),
            ("write it", fs::write(self.config.state_dir.join("owned/x"), "x")),
            ("read its certificate", fs::read(&self.config.tls.certificate).map(drop)),
            ("listen where it was told to", TcpListener::bind(self.config.listen).map(drop)),
            ("start a thread", std::thread::Builder::new().spawn(|| {}).map(|thread| _ = thread.join())),
        ]
    }

    fn files(&self) -> Vec<(&'static str, io::Result<()>)> {
        let at = |name: &str| self.folder.join(name);
        let write = |path: &Path| fs::write(path, "x").and_then(|()| fs::remove_file(path));
        let program = |path: &Path| Command::new(path).arg("--version").stdout(Stdio::null()).status().map(drop);
        let link = fs::read_dir(at("images")).into_iter().flatten().flatten().map(|entry| entry.path());
        let link = link.filter(|path| path.is_symlink()).last().unwrap_or_default();
        vec![
            ("read /etc/shadow", File::open("/etc/shadow").map(drop)),
            ("read it through a link in its folder", File::open(&link).map(drop)),
            ("read it from above its folder", File::open(at("images/../outside/secret")).map(drop)),
            ("list /root", fs::read_dir("/root").map(drop)),
            ("write /usr/local", write(Path::new("/usr/local/lib/trespass"))),
            ("write /etc", write(Path::new("/etc/trespass"))),
            ("write outside", write(&at("outside/x"))),
            ("write where it only reads", write(&at("bases/x"))),
            ("write an image it only reads", OpenOptions::new().write(true).open(at("bases/base")).map(drop)),
            ("truncate outside", OpenOptions::new().write(true).truncate(true).open(at("outside/secret")).map(drop)),
            ("move out of its folder", fs::rename(at("images/other"), at("outside/other"))),
            ("link out of its folder", fs::hard_link(at("bases/base"), at("images/base"))),
            ("make a link", symlink("/", at("images/root"))),
            ("run a shell", Command::new("/bin/sh").args(["-c", ":"]).status().map(drop)),
            ("run what it has in its folder", program(&at("images/program"))),
            ("look into a process", fs::read_dir(format!("/proc/{}/fd", self.stranger)).map(drop)),
            ("read a process's surroundings", File::open(format!("/proc/{}/environ", self.stranger)).map(drop)),
            ("read the kernel's memory map", File::open("/proc/kallsyms").map(drop)),
            ("read a disk of the host", File::open("/dev/vda").or_else(|_| File::open("/dev/zero")).map(drop)),
        ]
    }

    fn calls(&self) -> Vec<(&'static str, io::Result<()>)> {
        let folder = CString::new(self.folder.join("outside").display().to_string()).unwrap_or_default();
        let own = CString::new(self.folder.join("images/program").display().to_string()).unwrap_or_default();
        let device = CString::new(self.folder.join("images/device").display().to_string()).unwrap_or_default();
        let (folder, own, device) = (folder.as_ptr() as c_long, own.as_ptr() as c_long, device.as_ptr() as c_long);
        let pid = c_long::from(self.stranger);
        let nobody = 65534;
        let mut map = [0_u32; 32];
        map[..4].copy_from_slice(&[2, 4, 8, 1]);
        let map = map.as_mut_ptr() as c_long;
        let mut host = [0_u8; 65];
        let name = c"x";
        let (name, host) = (name.as_ptr() as c_long, host.as_mut_ptr() as c_long);
        let (root, tmpfs) = (c"/".as_ptr() as c_long, c"tmpfs".as_ptr() as c_long);
        let mut rings = [0_u64; 32];
        let cwd = c_long::from(libc::AT_FDCWD);
        let user = c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
        let seize = c_long::from(libc::PTRACE_SEIZE);
        vec![
            ("trace a process", call(libc::SYS_ptrace, [seize, pid, 0, 0, 0])),
            ("read a process's memory", call(libc::SYS_process_vm_readv, [pid, host, 0, 0, 0])),
            ("mount", call(libc::SYS_mount, [tmpfs, folder, tmpfs, 0, 0])),
            ("use bpf", call(libc::SYS_bpf, [0, map, 72, 0, 0])),
            ("load a module", call(libc::SYS_init_module, [host, 8, name, 0, 0])),
            ("open a raw socket", call(libc::SYS_socket, [2, 3, 1, 0, 0])),
            ("open a packet socket", call(libc::SYS_socket, [17, 3, 0, 0, 0])),
            ("open a netlink socket", call(libc::SYS_socket, [16, 3, 0, 0, 0])),
            ("become somebody else", call(libc::SYS_setresuid, [-1, nobody, -1, 0, 0])),
            ("and root again", call(libc::SYS_setresuid, [-1, 0, -1, 0, 0])),
            ("give a file away", call(libc::SYS_fchownat, [cwd, own, nobody, nobody, 0])),
            ("make a file a program", call(libc::SYS_fchmodat, [cwd, own, 0o755, 0, 0])),
            ("make a device", call(libc::SYS_mknodat, [cwd, device, 0o020_600, 0x103, 0])),
            ("open a file by its number", call(libc::SYS_open_by_handle_at, [cwd, host, 0, 0, 0])),
            ("have namespaces of its own", call(libc::SYS_unshare, [c_long::from(libc::CLONE_NEWUTS), 0, 0, 0, 0])),
            ("rename the host", call(libc::SYS_sethostname, [name, 1, 0, 0, 0])),
            ("change its root", call(libc::SYS_chroot, [root, 0, 0, 0, 0])),
            ("use io_uring", call(libc::SYS_io_uring_setup, [1, rings.as_mut_ptr() as c_long, 0, 0, 0])),
            ("make a program in memory", call(libc::SYS_memfd_create, [name, 0, 0, 0, 0])),
            ("use the kernel's keys", call(libc::SYS_keyctl, [0, -1, 1, 0, 0])),
            ("be a user with all rights elsewhere", forked(user)),
        ]
    }

    fn others(&self) -> Vec<(&'static str, io::Result<()>)> {
        let abstracted = SocketAddr::from_abstract_name(self.port.to_string());
        let stdin = io::stdin();
        let mut letter = b'x';
        let typed = call(libc::SYS_ioctl, [stdin.as_raw_fd().into(), 0x5412, (&raw mut letter) as c_long, 0, 0]);
        // Without a terminal the request is unknown to what stands in for one.
        let typed = typed.or_else(|error| if error.raw_os_error() == Some(libc::ENOTTY) { Ok(()) } else { Err(error) });
        vec![
            ("connect to a port", TcpStream::connect(("127.0.0.1", self.port)).map(drop)),
            ("listen on another port", TcpListener::bind("127.0.0.1:0").map(drop)),
            ("reach an abstract socket", abstracted.and_then(|at| UnixStream::connect_addr(&at)).map(drop)),
            ("signal a process", call(libc::SYS_kill, [c_long::from(self.stranger), 0, 0, 0, 0])),
            ("type into the terminal", typed),
        ]
    }
}

fn call(number: c_long, [a, b, c, d, e]: [c_long; 5]) -> io::Result<()> {
    // SAFETY: what is pointed at outlives the call and is as long as it is said to be; a descriptor that comes of it is ours
    // and ends with us.
    match unsafe { libc::syscall(number, a, b, c, d, e, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Forks with these flags; the child ends at once.
fn forked(flags: c_long) -> io::Result<()> {
    // SAFETY: without memory in common it is a fork, and the child does nothing but end.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: it runs no code of anybody's.
        0 => unsafe { libc::_exit(0) },
        child => {
            let child = i32::try_from(child).map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
            // SAFETY: it takes no place for the status.
            match unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        }
    }
}
