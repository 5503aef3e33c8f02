//! A VM of some form before it is defined: its XML piece by piece, its images, and how to read them from outside.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tests::guest::{Disk, Format};
use tests::libvirtd::Libvirtd;
use tests::tools::run;
use uuid::Uuid;

/// Where `qemu-io` leaves its mark on each disk: the mini guest writes to the first two sectors only.
const MARK_AT: u64 = 1 << 20;

/// An image as `qemu-io` opens it.
#[derive(Debug, Clone)]
pub struct Image {
    /// The target in the domain; of a neighbour's image the neighbour's name.
    pub target: String,
    /// Arguments that open it: format and path, or image options.
    pub open: Vec<String>,
    /// The files that hold it, whose checksums tell whether anything was written.
    pub files: Vec<PathBuf>,
}

impl Image {
    /// An image of this format in a file.
    pub fn new(target: &str, format: &str, path: &Path) -> Self {
        let open = vec!["-f".to_owned(), format.to_owned(), path.display().to_string()];
        Self { target: target.to_owned(), open, files: vec![path.to_owned()] }
    }

    /// Writes a mark, which the guest leaves alone. Nobody may have the image open.
    pub fn mark(&self, mark: u8) -> Result<()> {
        let write = format!("write -q -P {mark:#x} {MARK_AT} 4096");
        run(Command::new("qemu-io").args(["-c", &write]).args(&self.open)).map(drop)
    }

    /// Whether the mark is this one. Somebody may have the image open.
    pub fn has_mark(&self, mark: u8) -> Result<bool> {
        let read = format!("read -v {MARK_AT} 16");
        let shown = run(Command::new("qemu-io").args(["-r", "-U", "-c", &read]).args(&self.open))?;
        let wanted = format!("{mark:02x} ").repeat(16);
        Ok(shown.contains(wanted.trim_end()))
    }
}

/// Something that is done to the VM or around it at some moment.
pub type Act = Box<dyn Fn(&Libvirtd, &Machine) -> Result<()> + Send + Sync>;

/// A VM of some form.
pub struct Machine {
    /// Its libvirt name.
    pub name: String,
    /// Its id.
    pub uuid: Uuid,
    /// Its definition.
    pub xml: String,
    /// Its writable disks.
    pub disks: Vec<Image>,
    /// Images of others that must show the mark 0x4e.
    pub neighbours: Vec<Image>,
    /// The same from the moment on when everything of `after` was done.
    pub late_neighbours: Vec<Image>,
    /// Snapshots of other tools, by libvirt's names, with the mark that every disk had then.
    pub foreign: Vec<(&'static str, u8)>,
    /// The directory of its images.
    pub dir: PathBuf,
    /// The socket of its serial port.
    pub serial: PathBuf,
    /// Whether it can be started here.
    pub starts: bool,
    /// Done after it was defined.
    pub before: Vec<Act>,
    /// Done after its first snapshot, or where that is refused instead.
    pub after: Vec<Act>,
    /// Done before its domain and its images are removed.
    pub end: Vec<Act>,
}

/// A VM whose form is being described.
pub struct Draft {
    machine: Machine,
    memory: &'static str,
    top: String,
    os: String,
    features: String,
    devices: String,
    order: u32,
}

impl Draft {
    /// A VM without disks; `images` is the host's directory of images.
    pub fn new(images: &Path, name: &str) -> Result<Self> {
        let dir = images.join(name);
        std::fs::create_dir_all(&dir)?;
        let machine = Machine {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            xml: String::new(),
            disks: Vec::new(),
            neighbours: Vec::new(),
            late_neighbours: Vec::new(),
            foreign: Vec::new(),
            serial: images.join(format!("{name}.sock")),
            dir,
            starts: true,
            before: Vec::new(),
            after: Vec::new(),
            end: Vec::new(),
        };
        let nothing = String::new;
        let (top, os, features, devices) = (nothing(), nothing(), nothing(), nothing());
        Ok(Self { machine, memory: "<memory unit='MiB'>16</memory>", top, os, features, devices, order: 0 })
    }

    /// A path in its directory.
    pub fn path(&self, file: &str) -> PathBuf {
        self.machine.dir.join(file)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.machine.dir
    }

    /// Its id.
    pub fn uuid(&self) -> Uuid {
        self.machine.uuid
    }

    /// A qcow2 with the mini guest's boot sector, made with these options of `qemu-img convert`.
    pub fn boot_image(&self, file: &str, options: &[&str]) -> Result<PathBuf> {
        self.boot_image_of("qcow2", file, options)
    }

    /// The same in another format.
    pub fn boot_image_of(&self, format: &str, file: &str, options: &[&str]) -> Result<PathBuf> {
        let path = self.path(file);
        let raw = Disk::boot(&self.path(&format!("{file}.raw")), Format::Raw)?;
        run(Command::new("qemu-img").args(["resize", "-q", "--shrink", "-f", "raw"]).arg(raw.path()).arg("8M"))?;
        let convert = ["convert", "-f", "raw", "-O", format];
        run(Command::new("qemu-img").args(convert).args(options).arg(raw.path()).arg(&path))?;
        std::fs::remove_file(raw.path())?;
        Ok(path)
    }

    /// An empty qcow2, made with these options of `qemu-img create`.
    pub fn empty_image(&self, file: &str, options: &[&str]) -> Result<PathBuf> {
        let path = self.path(file);
        run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).args(options).arg(&path).arg("8M"))?;
        Ok(path)
    }

    /// A qcow2 on top of a backing file, which is named in it as it is written here.
    pub fn overlay(&self, file: &str, backing: &str, format: &str) -> Result<PathBuf> {
        let path = self.path(file);
        let create = ["create", "-q", "-f", "qcow2", "-F", format, "-b", backing];
        run(Command::new("qemu-img").args(create).arg(&path).arg("8M").current_dir(&self.machine.dir))?;
        Ok(path)
    }

    /// `vda`: a plain qcow2 from which the mini guest boots.
    #[must_use]
    pub fn boot(self) -> Self {
        self.try_boot(&[])
    }

    /// `vda` made with these options.
    #[must_use]
    pub fn boot_with(self, options: &[&str]) -> Self {
        self.try_boot(options)
    }

    #[expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]
    fn try_boot(self, options: &[&str]) -> Self {
        let path = self.boot_image("boot.qcow2", options).unwrap();
        self.file("vda", "qcow2", &path, "")
    }

    /// `vdb`: an empty qcow2 made with these options.
    #[must_use]
    #[expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]
    pub fn data_with(self, options: &[&str]) -> Self {
        let path = self.empty_image("data.qcow2", options).unwrap();
        self.file("vdb", "qcow2", &path, "")
    }

    /// A disk in a file; `more` goes into its `<disk>`.
    #[must_use]
    pub fn file(self, target: &str, format: &str, path: &Path, more: &str) -> Self {
        let image = Image::new(target, format, path);
        let source = format!("<driver name='qemu' type='{format}'/><source file='{}'/>", path.display());
        self.disk("type='file' device='disk'", target, &format!("{source}{more}"), Some(image))
    }

    /// A disk of any kind; `image` where it is one whose content counts.
    #[must_use]
    pub fn disk(mut self, attributes: &str, target: &str, inside: &str, image: Option<Image>) -> Self {
        self.order += 1;
        let bus = match target.get(..2) {
            Some("sd") => "scsi",
            Some("hd") => "ide",
            Some("fd") => "fdc",
            _ => "virtio",
        };
        let bus =
            if inside.contains("<target") { String::new() } else { format!("<target dev='{target}' bus='{bus}'/>") };
        let order = self.order;
        self.devices.push_str(&format!("\n<disk {attributes}>{inside}{bus}<boot order='{order}'/></disk>"));
        self.machine.disks.extend(image);
        self
    }

    /// A device.
    #[must_use]
    pub fn device(mut self, xml: &str) -> Self {
        self.devices.push_str(xml);
        self
    }

    /// An element of `<domain>`.
    #[must_use]
    pub fn top(mut self, xml: &str) -> Self {
        self.top.push_str(xml);
        self
    }

    /// An element of `<os>`.
    #[must_use]
    pub fn os(mut self, xml: &str) -> Self {
        self.os.push_str(xml);
        self
    }

    /// An element of `<features>`.
    #[must_use]
    pub fn feature(mut self, xml: &str) -> Self {
        self.features.push_str(xml);
        self
    }

    /// Its memory, in place of 16 MiB.
    #[must_use]
    pub fn memory(mut self, xml: &'static str) -> Self {
        self.memory = xml;
        self
    }

    /// It cannot be started here.
    #[must_use]
    pub fn never_started(mut self) -> Self {
        self.machine.starts = false;
        self
    }

    /// Another's image, which gets its mark now and has to keep it.
    #[must_use]
    #[expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]
    pub fn neighbour(mut self, image: Image) -> Self {
        image.mark(0x4e).unwrap();
        self.machine.neighbours.push(image);
        self
    }

    /// Something to be done after it was defined.
    #[must_use]
    pub fn before(mut self, act: impl Fn(&Libvirtd, &Machine) -> Result<()> + Send + Sync + 'static) -> Self {
        self.machine.before.push(Box::new(act));
        self
    }

    /// Something to be done after its first snapshot.
    #[must_use]
    pub fn after(mut self, act: impl Fn(&Libvirtd, &Machine) -> Result<()> + Send + Sync + 'static) -> Self {
        self.machine.after.push(Box::new(act));
        self
    }

    /// Something to be done before it is removed.
    #[must_use]
    pub fn end(mut self, act: impl Fn(&Libvirtd, &Machine) -> Result<()> + Send + Sync + 'static) -> Self {
        self.machine.end.push(Box::new(act));
        self
    }

    /// The VM; `machine` is QEMU's machine type.
    pub fn finish_as(mut self, machine: &str) -> Result<Machine> {
        let (name, uuid, memory) = (&self.machine.name, self.machine.uuid, self.memory);
        let (top, os, features, devices) = (&self.top, &self.os, &self.features, &self.devices);
        let serial = self.machine.serial.display();
        self.machine.xml = format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{name}</name><uuid>{uuid}</uuid>{memory}<vcpu>1</vcpu>{top}
<os><type arch='x86_64' machine='{machine}'>hvm</type>{os}</os>
<features>{features}</features>
<devices>{devices}<serial type='unix'><source mode='bind' path='{serial}'/></serial></devices>
</domain>"
        );
        Ok(self.machine)
    }

    /// The VM.
    pub fn finish(self) -> Result<Machine> {
        self.finish_as("pc")
    }
}

impl Machine {
    /// Runs virsh on it: `command DOMAIN arguments`.
    pub fn virsh(&self, daemon: &Libvirtd, command: &str, arguments: &[&str]) -> Result<String> {
        let uuid = self.uuid.to_string();
        daemon.virsh(&[&[command, uuid.as_str()], arguments].concat())
    }

    /// Defines another domain beside it.
    pub fn define_other(&self, daemon: &Libvirtd, name: &str, devices: &str) -> Result<()> {
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{devices}</devices></domain>"
        );
        let file = self.dir.join(format!("{name}.xml"));
        std::fs::write(&file, xml).context("a definition")?;
        daemon.virsh(&["define", &file.display().to_string()]).map(drop)
    }
}
