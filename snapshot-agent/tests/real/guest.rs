//! A guest of one boot sector on the embedded libvirt driver.
//!
//! The driver serves one process one root, so all tests share the root, and each has a machine of its own. QEMU survives
//! the process that started it: a guest that is dropped is killed, and what an interrupted run left is killed by the
//! next.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_core::ids::VmId;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;

const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Host {
    pub(crate) uri: String,
    pub(crate) libvirt: Arc<Libvirt>,
    dir: PathBuf,
}

pub(crate) static HOST: LazyLock<Host> = LazyLock::new(|| {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent");
    fs::create_dir_all(&base).unwrap();
    sweep(&base);
    let dir = base.join(std::process::id().to_string());
    fs::create_dir_all(dir.join("etc")).unwrap();
    let conf = "stdio_handler = \"file\"\nuser = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n";
    fs::write(dir.join("etc/qemu.conf"), conf).unwrap();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = manifest.join("../tests/guest/mini.S");
    run(&dir, "as", &["--32", "-o", "mini.o", source.to_str().unwrap()]);
    run(&dir, "ld", &["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", "mini.bin", "mini.o"]);
    let uri = format!("qemu:///embed?root={}", dir.display());
    let libvirt = Arc::new(Libvirt::new(&uri).unwrap());
    Host { uri, libvirt, dir }
});

/// Removes the folders of earlier runs and kills the guests that they left.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if Path::new("/proc").join(&pid).exists() {
            continue;
        }
        for file in fs::read_dir(entry.path().join("run/qemu")).into_iter().flatten().flatten() {
            let Ok(pid) = fs::read_to_string(file.path()) else { continue };
            let command = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
            let ours = entry.path().to_string_lossy().into_owned();
            if String::from_utf8_lossy(&command).contains(&ours) {
                let _ = Command::new("kill").args(["-9", pid.trim()]).status();
            }
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}

fn run(dir: &Path, program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
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

impl Guest {
    /// Defines a machine with this many disks, off.
    pub(crate) fn new(disks: usize) -> Self {
        Self::with(disks, "")
    }

    /// Defines a machine with more devices.
    pub(crate) fn with(disks: usize, devices: &str) -> Self {
        let vm = VmId::from_uuid(Uuid::new_v4());
        let name = vm.to_string()[..8].to_owned();
        let dir = HOST.dir.join(&name);
        fs::create_dir_all(&dir).unwrap();
        let mut disk_xml = String::new();
        // SeaBIOS shows a boot sector only the disks that have a place in the boot order.
        for (order, disk) in (1..).zip(["vda", "vdb", "vdc"]).take(disks) {
            let raw = dir.join(format!("{disk}.raw"));
            fs::copy(HOST.dir.join("mini.bin"), &raw).unwrap();
            fs::File::options().write(true).open(&raw).unwrap().set_len(64 << 20).unwrap();
            let image = format!("{disk}.qcow2");
            run(&dir, "qemu-img", &["convert", "-O", "qcow2", raw.to_str().unwrap(), &image]);
            disk_xml += &format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
                 <source file='{}'/><target dev='{disk}' bus='virtio'/><boot order='{order}'/></disk>",
                dir.join(image).display()
            );
        }
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><uuid>{vm}</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{disk_xml}\
             <serial type='unix'><source mode='bind' path='{}'/></serial><memballoon model='none'/>{devices}\
             </devices></domain>",
            dir.join("serial").display()
        );
        LazyLock::force(&HOST);
        let connection = Connect::open(Some(&HOST.uri)).unwrap();
        connection.define_domain_xml(&xml).unwrap();
        Self { vm, dir, connection }
    }

    pub(crate) fn domain(&self) -> Domain {
        self.connection.lookup_domain_by_uuid(self.vm.as_uuid()).unwrap()
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
        let report = self.ask(&[b'w', marker as u8]);
        assert_eq!((report.disk, report.ram), (marker, marker));
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
        let Ok(domain) = self.connection.lookup_domain_by_uuid(self.vm.as_uuid()) else { return };
        if domain.is_active().unwrap_or(false) {
            let _ = domain.destroy();
        }
        // SNAPSHOTS_METADATA, MANAGED_SAVE and NVRAM.
        let _ = domain.undefine_flags(1 | 2 | 4);
    }
}
