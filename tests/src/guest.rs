//! Guests. The mini guest is a whole machine in a boot sector, ready within a second, that answers on its serial port what
//! is on its disk and in its RAM: enough to tell a true revert from one that was merely recorded. The Linux guest has file
//! systems, and a shell on its serial port.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use uuid::Uuid;

use self::serial::Serial;

mod clock;
mod disk;
mod domain;
mod serial;
mod shell;

pub use self::clock::{Clock, Gap};
pub use self::disk::{Disk, Format};
pub use self::domain::{Shape, System};
pub use self::shell::Answer;

/// How long a guest may take to answer: a boot takes under a second alone, several on a loaded machine.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a command in a Linux guest may take, with the boot before it: ten seconds alone.
const SHELL: Duration = Duration::from_secs(120);

/// Numbers each record before and after, on tmpfs: what is in `acked` is on both disks, what is not in `begun` is on none.
/// A record counts as acknowledged when `fsync` says so.
const WRITER: &str = "append() { dd of=$1 oflag=append conv=notrunc,fsync; }; \
    (n=0; while [ ! -e /run/stop ]; do n=$((n+1)); echo $n >/run/new; mv /run/new /run/begun; \
    echo $n | append /data/log && echo $n | append /data2/log || break; \
    echo $n >/run/new; mv /run/new /run/acked; done) >/dev/null 2>&1 &";

/// What a guest says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The marker on the first disk; `_` when none was ever written.
    pub disk: char,
    /// The marker in RAM. At boot it is read from the disk.
    pub ram: char,
    /// How often the guest has booted from this disk; a snapshot holds the count too.
    pub boots: u8,
    /// The marker on the second disk, when there is one.
    pub second_disk: Option<char>,
}

/// A mini guest: its definition, its disks and the line to it. Where it runs is [`crate::libvirtd`]'s business or
/// [`crate::embed`]'s.
#[derive(Debug)]
pub struct Guest {
    name: String,
    uuid: Uuid,
    folder: PathBuf,
    disks: Vec<Disk>,
    shape: Shape,
    /// Where UEFI keeps its variables; without it the guest starts by a BIOS.
    nvram: Option<Disk>,
    serial: Serial,
}

impl Guest {
    /// A guest with one qcow2 disk of its own. `folder` is where its disk and its socket are made.
    pub fn new(folder: &Path, name: &str) -> Result<Self> {
        Self::with_disks(folder, name, vec![Disk::boot(&folder.join(format!("{name}.qcow2")), Format::Qcow2)?])
    }

    /// A guest with a second, empty qcow2 disk, `vdb`.
    pub fn with_two_disks(folder: &Path, name: &str) -> Result<Self> {
        let first = Disk::boot(&folder.join(format!("{name}.qcow2")), Format::Qcow2)?;
        let second = Disk::empty(&folder.join(format!("{name}-data.qcow2")), Format::Qcow2)?;
        Self::with_disks(folder, name, vec![first, second])
    }

    /// A guest on a clone: an empty qcow2 on top of `base`, as Ravada makes desktops from their base.
    pub fn clone_of(folder: &Path, name: &str, base: &Disk) -> Result<Self> {
        Self::with_disks(folder, name, vec![Disk::clone_of(&folder.join(format!("{name}.qcow2")), base)?])
    }

    /// A Linux guest with an ext4 on each of its qcow2 disks, mounted at `/data` and, with a second one, at `/data2`.
    /// It is asked by [`Guest::shell`].
    pub fn linux(folder: &Path, name: &str, disks: usize) -> Result<Self> {
        let path = |number: usize| folder.join(format!("{name}-{number}.qcow2"));
        let disks = (0..disks).map(|number| Disk::ext4(&path(number), Format::Qcow2)).collect::<Result<_>>()?;
        Ok(Self::with_disks(folder, name, disks)?.shaped(Shape::linux()))
    }

    /// A Linux guest that UEFI starts, which keeps its variables in a file of this format. The guest has one disk.
    pub fn uefi(folder: &Path, name: &str, nvram: Format) -> Result<Self> {
        let mut guest = Self::linux(folder, name, 1)?.shaped(Shape { memory_mib: 256, ..Shape::linux() });
        guest.nvram = Some(Disk::uefi_variables(&folder.join(format!("{name}.nvram")), nvram)?);
        Ok(guest)
    }

    /// A guest with these disks, `vda` first.
    pub fn with_disks(folder: &Path, name: &str, disks: Vec<Disk>) -> Result<Self> {
        let serial = Serial::new(folder.join(format!("{name}.sock")));
        let (folder, name) = (folder.to_owned(), name.to_owned());
        Ok(Self { name, uuid: Uuid::new_v4(), folder, disks, shape: Shape::default(), nvram: None, serial })
    }

    /// Changes what the domain looks like beside its disks.
    #[must_use]
    pub fn shaped(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The domain's id.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The machine's resource name in the public API.
    pub fn vm(&self) -> String {
        format!("vms/{}", self.uuid)
    }

    /// Its disks, `vda` first.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Where UEFI keeps its variables.
    pub fn nvram(&self) -> Option<&Disk> {
        self.nvram.as_ref()
    }

    /// The domain's definition.
    pub fn xml(&self) -> Result<String> {
        domain::xml(&self.name, self.uuid, (&self.disks, self.nvram.as_ref()), self.serial.path(), self.shape)
    }

    /// The socket of its serial port.
    pub fn serial(&self) -> &Path {
        self.serial.path()
    }

    /// Where the domain's definition may be put in a file.
    pub fn xml_file(&self) -> PathBuf {
        self.folder.join(format!("{}.xml", self.name))
    }

    /// What it says now. Also waits until it has booted, or has come back after a revert restarted its QEMU.
    pub fn report(&self) -> Result<Report> {
        self.report_within(ANSWER)
    }

    /// As [`Guest::report`], with another deadline: a paused guest answers only after it was resumed.
    pub fn report_within(&self, limit: Duration) -> Result<Report> {
        self.serial.ask("r", limit, |_| true)
    }

    /// Lets it write a marker (a printable character) to its disks and its RAM, and returns what it says afterwards.
    pub fn write(&self, marker: char) -> Result<Report> {
        // A guest that is not there yet could lose the marker and take the next question for it.
        self.report()?;
        self.serial.ask(&format!("w{marker}"), ANSWER, |report| report.disk == marker && report.ram == marker)
    }

    /// Runs a command line in a Linux guest. Also waits until it has booted.
    pub fn shell(&self, command: &str) -> Result<Answer> {
        shell::run(self.serial.path(), command, SHELL)
    }

    /// Has a Linux guest with two disks write to both without end, flushing each record: until it finds `/run/stop`.
    pub fn write_without_end(&self) -> Result<()> {
        self.shell("touch /data/log /data2/log && sync")?.ok()?;
        self.shell(&format!("{WRITER} sleep 1; cat /run/acked"))?.ok().map(drop)
    }
}

/// Speaks to the guest behind a serial socket: lets it write a marker where one is given, and returns what it says.
pub fn ask(socket: &Path, marker: Option<char>) -> Result<Report> {
    let serial = Serial::new(socket.to_owned());
    let report = serial.ask("r", ANSWER, |_| true)?;
    match marker {
        None => Ok(report),
        Some(marker) => {
            serial.ask(&format!("w{marker}"), ANSWER, |report| report.disk == marker && report.ram == marker)
        }
    }
}
