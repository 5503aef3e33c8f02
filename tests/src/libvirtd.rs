//! A libvirt daemon of the test's own.
//!
//! libvirtd has its folders compiled in, so it gets a mount namespace in which the test's folders lie over them; QEMUs
//! inherit it. Seen from outside, everything is in the test's folder: the sockets, the images, libvirt's `run`, `lib`,
//! `etc` and `log`. The daemon may be killed and started again; QEMU runs on meanwhile and is found again, because the
//! new namespace has the same folders at the same places. The namespace, and with it every mount, ends with its last
//! process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::guest::Guest;
use crate::processes::{Launch, Process};
use crate::scratch::{Scratch, kill_guests};
use crate::tools::{run, shared_cache};

/// Alone it is up in 0.2 s; several starting at once on a busy machine take their time.
const START: Duration = Duration::from_secs(60);

/// What QEMUs run with: as root and unconfined, because the images are in a folder of the test's that nobody else may
/// enter; without cgroups and namespaces, because two tests' guests may have the same name; with files for logs,
/// because there is no virtlogd.
pub const QEMU_CONF: &str = r#"stdio_handler = "file"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
"#;

/// The folders that libvirtd was built to use, and where in the test's folder each of them is.
const FOLDERS: [(&str, &str); 4] =
    [("run", "/run/libvirt"), ("lib", "/var/lib/libvirt"), ("etc", "/etc/libvirt"), ("log", "/var/log/libvirt")];
/// What QEMU can do takes libvirt four seconds to find out. It keeps it here, and all daemons of all tests share it.
const CACHE: &str = "/var/cache/libvirt";

/// What a service manager runs before it starts the daemon (docs/adr/0013).
const FORGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/libvirtd.service.d/forget-unfinished-starts");

/// A snapshot as virsh lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name, which is its id.
    pub name: String,
    /// Its parent's name.
    pub parent: Option<String>,
    /// What it recorded: `running`, `paused`, `shutoff`.
    pub state: String,
    /// Whether libvirt marks it as current.
    pub is_current: bool,
}

/// A running daemon. Dropping it kills its guests and itself and removes its folder.
#[derive(Debug)]
pub struct Libvirtd {
    // Dropped first, before the folder with its log.
    process: Process,
    scratch: Scratch,
}

impl Libvirtd {
    /// Starts a daemon with no domains.
    pub fn start() -> Result<Self> {
        let scratch = Scratch::new()?;
        let process = Process::start(launch(&scratch)?)?;
        let mut daemon = Self { process, scratch };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Where guests put their images and their sockets. The sockets' paths must stay under 108 bytes.
    pub fn images(&self) -> Result<PathBuf> {
        self.scratch.folder("images")
    }

    /// Where libvirt keeps snapshot metadata, seen from outside.
    pub fn snapshot_folder(&self) -> PathBuf {
        self.folder().join("lib/qemu/snapshot")
    }

    /// The connection URI, for any libvirt client of this machine.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("libvirt-sock")
    }

    /// Runs virsh against this daemon and returns what it printed.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new("virsh").arg("-q").arg("-c").arg(self.uri()).args(arguments))
    }

    /// Kills the daemon as a crash would. Its guests run on.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again after [`Libvirtd::kill`]; it finds its guests again.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.start_again()?;
        self.wait_ready()
    }

    /// Does what has to be done before a daemon that died is started: what it was starting then is off. Returns what it
    /// said of that.
    pub fn forget_unfinished_starts(&self) -> Result<String> {
        let output = Command::new(FORGET).arg(self.folder().join("run/qemu")).output()?;
        anyhow::ensure!(output.status.success(), "{FORGET} ended with {}", output.status);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The daemon's process, to signal it or to look whether it runs.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Makes the guest's domain known, powered off.
    pub fn define(&self, guest: &Guest) -> Result<()> {
        let file = guest.xml_file();
        fs::write(&file, guest.xml()?)?;
        self.virsh(&["define", &file.display().to_string()]).map(drop)
    }

    /// Makes the guest's domain known and powers it on; does not wait for its boot, which the guest's report does.
    pub fn define_and_start(&self, guest: &Guest) -> Result<()> {
        self.define(guest)?;
        self.power_on(guest)
    }

    /// Powers the guest on.
    pub fn power_on(&self, guest: &Guest) -> Result<()> {
        self.virsh(&["start", guest.name()]).map(drop)
    }

    /// Powers the guest off as by its plug. `virsh shutdown` would wait for a guest that knows no ACPI.
    pub fn power_off(&self, guest: &Guest) -> Result<()> {
        self.virsh(&["destroy", guest.name()]).map(drop)
    }

    /// Stops the guest in memory.
    pub fn pause(&self, guest: &Guest) -> Result<()> {
        self.virsh(&["suspend", guest.name()]).map(drop)
    }

    /// Lets it run on.
    pub fn resume(&self, guest: &Guest) -> Result<()> {
        self.virsh(&["resume", guest.name()]).map(drop)
    }

    /// What libvirt says it is doing: `running`, `paused`, `shut off`.
    pub fn state(&self, guest: &Guest) -> Result<String> {
        Ok(self.virsh(&["domstate", guest.name()])?.trim().to_owned())
    }

    /// The names of the guest's snapshots in libvirt, as virsh lists them.
    pub fn snapshots(&self, guest: &Guest) -> Result<Vec<String>> {
        let list = self.virsh(&["snapshot-list", guest.name(), "--name", "--topological"])?;
        Ok(list.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// The guest's snapshots as virsh tells them, in the order of their names.
    pub fn snapshot_tree(&self, guest: &Guest) -> Result<Vec<Listed>> {
        let list = self.virsh(&["snapshot-list", guest.name(), "--parent"])?;
        let current = self.current_snapshot(guest)?;
        let lines = list.lines().filter(|line| !line.trim().is_empty());
        // Name, date, time, zone, state, and the parent where there is one. Names in tests have no spaces.
        let listed = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (name, state) = (words.first().copied(), words.get(4).copied());
            let name = name.with_context(|| format!("virsh's line {line:?}"))?.to_owned();
            let state = state.with_context(|| format!("virsh's line {line:?}"))?.to_owned();
            let parent = words.get(5).map(|&word| word.to_owned());
            Ok(Listed { is_current: current.as_ref() == Some(&name), name, state, parent })
        };
        let mut tree: Vec<Listed> = lines.map(listed).collect::<Result<_>>()?;
        tree.sort();
        Ok(tree)
    }

    /// The snapshot that libvirt marks as current.
    pub fn current_snapshot(&self, guest: &Guest) -> Result<Option<String>> {
        match self.virsh(&["snapshot-current", guest.name(), "--name"]) {
            Ok(name) => Ok(Some(name.trim().to_owned())),
            Err(error) if error.to_string().contains("no current snapshot") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What libvirt keeps as the snapshot's `<description>`, with its XML escapes undone.
    pub fn description(&self, guest: &Guest, snapshot: &str) -> Result<String> {
        let xml = self.virsh(&["snapshot-dumpxml", guest.name(), snapshot])?;
        let text = xml.split_once("<description>").and_then(|(_, rest)| rest.split_once("</description>"));
        let text = text.with_context(|| format!("no description in {xml}"))?.0;
        Ok(text
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&apos;", "'")
            .replace("&amp;", "&"))
    }

    /// The process id of the guest's QEMU; an error when it is off.
    pub fn qemu_pid(&self, guest: &Guest) -> Result<i32> {
        let file = self.folder().join("run/qemu").join(format!("{}.pid", guest.name()));
        let text = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
        text.trim().parse().context("a QEMU's pid file")
    }

    fn wait_ready(&mut self) -> Result<()> {
        let uri = self.uri();
        self.process.wait_ready(START, || run(Command::new("virsh").args(["-q", "-c", &uri, "uri"])).is_ok())
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        // The daemon first: it would see a QEMU die and act on it. What is left, the folder's own drop finds.
        let _ = self.process.kill();
        kill_guests(&self.folder().join("run/qemu"), self.folder());
    }
}

fn launch(scratch: &Scratch) -> Result<Launch> {
    let root = scratch.path().display().to_string();
    let etc = scratch.folder("etc")?;
    scratch.folder("etc/qemu")?;
    fs::write(etc.join("qemu.conf"), QEMU_CONF)?;
    fs::write(
        etc.join("libvirtd.conf"),
        // With a UUID of its own it is another host to libvirt, which machines can be moved to.
        format!(
            "unix_sock_dir = \"{root}\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nhost_uuid = \"{}\"\n",
            uuid::Uuid::new_v4()
        ),
    )?;
    let mut mounts: Vec<(String, &str)> = Vec::new();
    for (name, place) in FOLDERS {
        mounts.push((scratch.folder(name)?.display().to_string(), place));
    }
    mounts.push((shared_cache("libvirt")?.display().to_string(), CACHE));
    let mut script = String::from("set -e\n");
    for (folder, place) in mounts {
        // Debian's package makes them all but /run/libvirt, which nothing makes without systemd.
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        script.push_str(&format!("mount --bind '{folder}' '{place}'\n"));
    }
    script.push_str(&format!("exec libvirtd -f '{root}/etc/libvirtd.conf' -p '{root}/libvirtd.pid'\n"));
    // Without --fork, unshare becomes the shell and the shell becomes libvirtd: one process, the one we know.
    let arguments = ["--mount", "--propagation", "private", "sh", "-c", &script].map(str::to_owned).to_vec();
    Ok(Launch {
        name: "libvirtd".into(),
        program: "unshare".into(),
        arguments,
        environment: Vec::new(),
        log: scratch.path().join("libvirtd.log"),
    })
}
