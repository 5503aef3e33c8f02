//! Disk images of guests.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};

use crate::tools::run;

/// The size the guest sees. The files are sparse.
const SIZE: u64 = 64 * 1024 * 1024;
/// UEFI's variables as they are at first, of Debian's package `ovmf`.
const UEFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/mini.S");

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// qcow2, which can hold snapshots inside.
    Qcow2,
    /// Raw, which cannot.
    Raw,
}

impl Format {
    /// As libvirt and qemu-img call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// A disk image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    path: PathBuf,
    format: Format,
}

impl Disk {
    /// A new image with the mini guest's boot sector and nothing else.
    pub fn boot(path: &Path, format: Format) -> Result<Self> {
        let raw = path.with_extension("making");
        let file = fs::File::create(&raw).with_context(|| format!("cannot make {}", raw.display()))?;
        file.set_len(SIZE)?;
        file.write_all_at(boot_sector()?, 0)?;
        drop(file);
        Self::from_raw(&raw, path, format)
    }

    fn from_raw(raw: &Path, path: &Path, format: Format) -> Result<Self> {
        match format {
            Format::Raw => fs::rename(raw, path)?,
            Format::Qcow2 => {
                run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(path))?;
                fs::remove_file(raw)?;
            }
        }
        Ok(Self { path: path.to_owned(), format })
    }

    /// A new image with nothing on it.
    pub fn empty(path: &Path, format: Format) -> Result<Self> {
        run(Command::new("qemu-img").args(["create", "-q", "-f", format.name()]).arg(path).arg(SIZE.to_string()))?;
        Ok(Self { path: path.to_owned(), format })
    }

    /// A new image with an empty ext4 on it, for a Linux guest.
    pub fn ext4(path: &Path, format: Format) -> Result<Self> {
        let raw = path.with_extension("making");
        fs::File::create(&raw).with_context(|| format!("cannot make {}", raw.display()))?.set_len(SIZE)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0"]).arg(&raw))?;
        Self::from_raw(&raw, path, format)
    }

    /// A new file of UEFI's variables.
    pub fn uefi_variables(path: &Path, format: Format) -> Result<Self> {
        let raw = path.with_extension("making");
        fs::copy(UEFI_VARIABLES, &raw).with_context(|| format!("no {UEFI_VARIABLES}: run `scripts/setup.sh test`"))?;
        Self::from_raw(&raw, path, format)
    }

    /// A new qcow2 image on top of another one, which must not change from then on.
    pub fn clone_of(path: &Path, base: &Self) -> Result<Self> {
        let format = ["create", "-q", "-f", "qcow2", "-F", base.format.name(), "-b"];
        run(Command::new("qemu-img").args(format).arg(&base.path).arg(path))?;
        Ok(Self { path: path.to_owned(), format: Format::Qcow2 })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    pub fn format(&self) -> Format {
        self.format
    }
}

/// The boot sector, assembled once in a process: it takes some 20 ms.
fn boot_sector() -> Result<&'static [u8]> {
    static BUILT: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| assemble().map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow::anyhow!("cannot assemble {SOURCE}: {error}"))
}

fn assemble() -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let (object, binary) = (folder.path().join("mini.o"), folder.path().join("mini.bin"));
    run(Command::new("as").args(["--32", "-o"]).arg(&object).arg(SOURCE))?;
    let layout = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"];
    run(Command::new("ld").args(layout).arg(&binary).arg(&object))?;
    let sector = fs::read(&binary)?;
    ensure!(sector.len() == 512, "it is {} bytes, and a boot sector is 512", sector.len());
    Ok(sector)
}
