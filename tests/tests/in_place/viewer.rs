//! Somebody who looks at a guest by SPICE, with the library of the usual viewers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::ANSWER;

/// What the connection has been through.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Seen {
    /// Channels, by their type.
    pub opened: Vec<String>,
    /// Channels that were closed or failed, and how.
    pub ended: Vec<String>,
    /// How often the guest's screen was made.
    pub surfaces: u32,
    /// How often something was drawn on it.
    pub drawn: u32,
}

pub(crate) struct Viewer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Viewer {
    /// Opens all channels that a desktop has, and sees a picture.
    pub(crate) fn open(socket: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/in_place/viewer.py");
        let mut process = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut viewer = Self { process, input, output };
        viewer.until("a picture", |seen| seen.surfaces > 0 && seen.drawn > 0);
        viewer
    }

    pub(crate) fn seen(&mut self) -> Seen {
        writeln!(self.input).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    pub(crate) fn until(&mut self, what: &str, is: impl Fn(&Seen) -> bool) -> Seen {
        let begun = Instant::now();
        loop {
            let seen = self.seen();
            if is(&seen) {
                return seen;
            }
            assert!(begun.elapsed() < ANSWER, "no {what}: {seen:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
