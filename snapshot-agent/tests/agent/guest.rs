//! A guest of one boot sector.
//!
//! The embedded driver serves one process one root, so most tests share the root, and each has a machine of its own. QEMU
//! survives the process that started it: a guest that is dropped is killed, and what the process leaves, because it was killed
//! or because a static is never dropped, is its reaper's (`processes`).

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use snapshot_agent::hypervisor::Hypervisor;
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_core::ids::VmId;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;

use crate::processes::{clean_up_at_exit, kill_all_of};

const DEADLINE: Duration = Duration::from_secs(60);

/// A libvirt to have guests on.
pub(crate) struct Host {
    pub(crate) uri: String,
    pub(crate) dir: PathBuf,
}

/// The libvirt that most tests share.
pub(crate) struct Embedded {
    pub(crate) host: Host,
    pub(crate) libvirt: Arc<Libvirt>,
}

pub(crate) const QEMU_CONF: &str = "stdio_handler = \"file\"\nuser = \"root\"\ngroup = \"root\"\n\
     security_driver = \"none\"\ndynamic_ownership = 0\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\n";

/// A folder for this process, in which no path of a socket grows too long.
pub(crate) static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent");
    fs::create_dir_all(&base).unwrap();
    sweep(&base);
    let dir = base.join(std::process::id().to_string());
    fs::create_dir_all(&dir).unwrap();
    clean_up_at_exit(&dir);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guest/mini.S");
    run(&dir, "as", &["--32", "-o", "mini.o", source.to_str().unwrap()]);
    run(&dir, "ld", &["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", "mini.bin", "mini.o"]);
    dir
});

pub(crate) static HOST: LazyLock<Embedded> = LazyLock::new(|| {
    let dir = FOLDER.join("embed");
    fs::create_dir_all(dir.join("etc")).unwrap();
    fs::write(dir.join("etc/qemu.conf"), QEMU_CONF).unwrap();
    let uri = format!("qemu:///embed?root={}", dir.display());
    let libvirt = Arc::new(Libvirt::new(&uri).unwrap());
    // The driver must be initialized before a test opens a connection of its own to it.
    libvirt.vms().unwrap();
    Embedded { host: Host { uri, dir }, libvirt }
});

/// Removes the folders of earlier runs and kills the guests that they left: the reaper of one may have been killed with it.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).unwrap().flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            kill_all_of(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

pub(crate) fn run(dir: &Path, program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One connection for all guests of a host: the embedded driver registers itself anew for each, and ten times at most.
fn connect(uri: &str) -> Connect {
    static OPEN: Mutex<BTreeMap<String, Connect>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    match open.get(uri).filter(|connection| connection.is_alive().unwrap_or(false)) {
        Some(connection) => connection.clone(),
        None => {
            let connection = Connect::open(Some(uri)).unwrap();
            open.insert(uri.to_owned(), connection.clone());
            connection
        }
    }
}

/// What the guest finds: on its first disk, in its RAM, and on the second disk if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) disk: char,
    pub(crate) ram: char,
    pub(crate) second: Option<char>,
}

pub(crate) struct Guest {
    pub(crate) vm: VmId,
    pub(crate) dir: PathBuf,
    connection: Connect,
}

/// A guest is slow as long as this is there.
pub(crate) struct Slow {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Guest {
    /// Defines a machine with this many disks, off.
    pub(crate) fn new(disks: usize) -> Self {
        Self::on(&HOST.host, disks, "")
    }

    /// The same with raw images.
    pub(crate) fn raw(disks: usize) -> Self {
        Self::of(&HOST.host, disks, "", "raw", 16)
    }

    /// One with so much RAM, in MiB, that it takes a moment to save.
    pub(crate) fn with_memory(disks: usize, memory: u32) -> Self {
        Self::of(&HOST.host, disks, "", "qcow2", memory)
    }

    /// Defines a machine with more devices on some host.
    pub(crate) fn on(host: &Host, disks: usize, devices: &str) -> Self {
        Self::of(host, disks, devices, "qcow2", 16)
    }

    fn of(host: &Host, disks: usize, devices: &str, format: &str, memory: u32) -> Self {
        let vm = VmId::from_uuid(Uuid::new_v4());
        let name = vm.to_string()[..8].to_owned();
        let dir = host.dir.join(&name);
        fs::create_dir_all(&dir).unwrap();
        let mut disk_xml = String::new();
        // SeaBIOS shows a boot sector only the disks that have a place in the boot order.
        for (order, disk) in (1..).zip(["vda", "vdb", "vdc"]).take(disks) {
            let raw = dir.join(format!("{disk}.raw"));
            fs::copy(FOLDER.join("mini.bin"), &raw).unwrap();
            fs::File::options().write(true).open(&raw).unwrap().set_len(64 << 20).unwrap();
            let image = format!("{disk}.{format}");
            if format == "qcow2" {
                run(&dir, "qemu-img", &["convert", "-O", "qcow2", raw.to_str().unwrap(), &image]);
            }
            disk_xml += &format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
                 <source file='{}'/><target dev='{disk}' bus='virtio'/><boot order='{order}'/></disk>",
                dir.join(image).display()
            );
        }
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><uuid>{vm}</uuid><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{disk_xml}\
             <serial type='unix'><source mode='bind' path='{}'/></serial><memballoon model='none'/>{devices}\
             </devices></domain>",
            dir.join("serial").display()
        );
        let connection = connect(&host.uri);
        connection.define_domain_xml(&xml).unwrap();
        Self { vm, dir, connection }
    }

    pub(crate) fn domain(&self) -> Domain {
        self.connection.lookup_domain_by_uuid(self.vm.as_uuid()).unwrap()
    }

    /// The connection that it was defined by.
    pub(crate) fn connect(&self) -> &Connect {
        &self.connection
    }

    /// Defines it anew.
    pub(crate) fn define(&self, xml: &str) {
        self.connection.define_domain_xml(xml).unwrap();
    }

    /// Sends a signal to its QEMU.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.qemu(), signal).unwrap();
    }

    /// Lets its QEMU work for a few milliseconds in every fifty only, until this is dropped.
    pub(crate) fn slow_down(&self) -> Slow {
        let pid = self.qemu();
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        // It may have ended meanwhile.
        let signal = move |signal| _ = kill_process(pid, signal);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Acquire) {
                signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(45));
                signal(Signal::CONT);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Slow { over, thread: Some(thread) }
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.parent().unwrap().join(format!("run/qemu/{}.pid", &self.vm.to_string()[..8]))
    }

    /// Ends it and has libvirt forget it, if there still is a libvirt that knows it.
    fn undefine(&self) {
        let Ok(domain) = self.connection.lookup_domain_by_uuid(self.vm.as_uuid()) else { return };
        if domain.is_active().unwrap_or(false) {
            let _ = domain.destroy();
        }
        // SNAPSHOTS_METADATA, MANAGED_SAVE and NVRAM.
        let _ = domain.undefine_flags(1 | 2 | 4);
    }

    fn qemu(&self) -> Pid {
        let pid = fs::read_to_string(self.pid_file()).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
    }

    pub(crate) fn start(&self) {
        self.domain().create().unwrap();
        self.report();
    }

    pub(crate) fn report(&self) -> Report {
        self.ask(b"r")
    }

    /// Has the guest write this to its disks and keep it in RAM.
    pub(crate) fn write(&self, marker: char) {
        // On a busy machine the answer to an earlier question may come first.
        let start = Instant::now();
        while self.ask(&[b'w', marker as u8]).disk != marker {
            assert!(start.elapsed() < DEADLINE, "the guest did not write within {DEADLINE:?}");
        }
    }

    fn ask(&self, question: &[u8]) -> Report {
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            if let Some(report) = self.try_ask(question) {
                return report;
            }
        }
        panic!("the guest did not answer within {DEADLINE:?}");
    }

    /// The last report that comes: after a boot, or when a question was asked before somebody listened, there are more.
    fn try_ask(&self, question: &[u8]) -> Option<Report> {
        let mut text = String::new();
        let mut attempt = || -> std::io::Result<()> {
            let mut serial = UnixStream::connect(self.dir.join("serial"))?;
            serial.set_read_timeout(Some(Duration::from_millis(500)))?;
            serial.write_all(question)?;
            let mut byte = [0];
            while serial.read(&mut byte)? == 1 {
                text.push(char::from(byte[0]));
                if text.contains("D=") && text.ends_with('\n') {
                    serial.set_read_timeout(Some(Duration::from_millis(50)))?;
                }
            }
            Ok(())
        };
        let _ = attempt();
        if !text.ends_with('\n') {
            std::thread::sleep(Duration::from_millis(20));
            return None;
        }
        let field = |name: &str| text.rsplit_once(name).and_then(|(_, rest)| rest.chars().next());
        Some(Report { disk: field("D=")?, ram: field("M=")?, second: field("X=") })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.undefine();
        // Whatever libvirt said. It may have been killed a moment ago, with a connection that does not know it yet, and QEMU outlives
        // it.
        kill_all_of(&self.dir);
    }
}
