//! What a Linux guest says the time is (`tests/guest/clock.c`), every millisecond, with when that was heard here: the guest's clock goes on
//! while the guest is held up, and stands still while QEMU has stopped it; the host's clock goes on in both cases.
//!
//! An emulated guest on a busy machine is held up without any snapshot as well. Whoever measures looks at times without one, too.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Guest;
use crate::tools::{run, wait_for};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/clock.c");
/// Small, and without a library: it is typed into the guest's shell as one line.
const COMPILE: [&str; 9] = [
    "-Os",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-mgeneral-regs-only",
    "-Wl,-N,--build-id=none,-z,noseparate-code,--no-warn-rwx-segments",
    "-s",
];
/// The name of the port in the guest.
const PORT: &str = "tests.clock";
/// How long the guest may be silent: seconds on a machine that is busy with other things.
const SILENT: Duration = Duration::from_secs(60);

/// The longest times between two looks at the clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gap {
    /// By the guest's own clock.
    pub guest: Duration,
    /// By the host's, when they were heard.
    pub host: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Tick {
    heard: Instant,
    told: Duration,
}

/// A guest's clock, listened to for as long as its QEMU runs.
#[derive(Debug)]
pub struct Clock(Arc<Mutex<Vec<Tick>>>);

impl Clock {
    /// Where a guest's clock is heard.
    fn socket(guest: &Guest) -> PathBuf {
        guest.folder.join(format!("{}.clock", guest.name))
    }

    /// The definition of a Linux guest with a port for its clock, and with ACPI: without it such a guest counts ticks, and does not
    /// notice that one was late.
    pub fn xml(guest: &Guest) -> Result<String> {
        let socket = Self::socket(guest);
        let port = format!(
            "<channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='{PORT}'/></channel>",
            socket.display()
        );
        let xml = guest.xml()?.replace("<devices>", "<features><acpi/></features><devices>");
        Ok(xml.replace("</devices>", &format!("{port}</devices>")))
    }

    /// Has a guest that was defined by [`Clock::xml`] tell the time from now on.
    pub fn start(guest: &Guest) -> Result<Self> {
        let mut stream = UnixStream::connect(Self::socket(guest)).context("no port for the guest's clock")?;
        let program = STANDARD.encode(program()?);
        guest.shell(&format!("echo {program} | base64 -d >/run/clock && chmod +x /run/clock"))?.ok()?;
        let ports = "for port in /sys/class/virtio-ports/*; do";
        let this = format!("[ \"$(cat $port/name)\" = {PORT} ]");
        let begin = "/run/clock >/dev/${port##*/} 2>/dev/null &";
        guest.shell(&format!("{ports} {this} || continue; {begin} done"))?.ok()?;
        let ticks = Arc::new(Mutex::new(Vec::new()));
        let heard_by = Arc::clone(&ticks);
        thread::spawn(move || {
            let mut bytes = [0; 8];
            while stream.read_exact(&mut bytes).is_ok() {
                let tick = Tick { heard: Instant::now(), told: Duration::from_nanos(u64::from_ne_bytes(bytes)) };
                heard_by.lock().unwrap_or_else(PoisonError::into_inner).push(tick);
            }
        });
        let clock = Self(ticks);
        clock.gap(Instant::now(), Instant::now())?;
        Ok(clock)
    }

    /// The longest gaps that lie in this time, wholly or in part. Waits for what ends the last one.
    pub fn gap(&self, begin: Instant, end: Instant) -> Result<Gap> {
        wait_for("the guest's clock", SILENT, || {
            let ticks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let first = ticks.partition_point(|tick| tick.heard < begin).saturating_sub(1);
            // What was told just before the guest was held up may be heard just after.
            let last = ticks.partition_point(|tick| tick.heard <= end) + 1;
            let Some(ticks) = ticks.get(first..=last) else { return Ok(None) };
            let pairs = ticks.windows(2);
            Ok(Some(pairs.fold(Gap::default(), |longest, pair| Gap {
                guest: longest.guest.max(pair[1].told.saturating_sub(pair[0].told)),
                host: longest.host.max(pair[1].heard - pair[0].heard),
            })))
        })
    }
}

fn program() -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let program: &Path = &folder.path().join("clock");
    run(Command::new("gcc").args(COMPILE).arg("-o").arg(program).arg(SOURCE))?;
    Ok(std::fs::read(program)?)
}
