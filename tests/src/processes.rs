//! A server process that a test starts, stops, kills and starts again.
//!
//! Its stderr goes to a file in the test's folder. When a test panics, the end of that file is printed, so that the
//! server's side of a failure is in the test's output.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::tools::wait_for;

/// How long a server may take over a graceful stop before it is killed.
const STOP: Duration = Duration::from_secs(15);
/// How many lines of stderr a failure shows.
const TAIL: usize = 60;

/// How a server is started, kept for starting it again.
#[derive(Debug, Clone)]
pub struct Launch {
    /// What it is called in messages; also names its log.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables set on top of the test's own environment.
    pub environment: Vec<(String, String)>,
    /// Where its stderr (and stdout) is appended.
    pub log: PathBuf,
}

/// A server process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Option<Child>,
}

impl Process {
    /// Starts it. It need not be ready yet: see [`Process::wait_ready`].
    pub fn start(launch: Launch) -> Result<Self> {
        let mut process = Self { launch, child: None };
        process.start_again()?;
        Ok(process)
    }

    /// Starts it after it ended, with the same arguments and the same log.
    pub fn start_again(&mut self) -> Result<()> {
        if self.is_running() {
            bail!("{} runs already", self.launch.name);
        }
        let log = File::options().create(true).append(true).open(&self.launch.log)?;
        let mut command = Command::new(&self.launch.program);
        command.args(&self.launch.arguments).envs(self.launch.environment.iter().cloned());
        // The folder the test was started in may be removed while the server runs.
        command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.launch.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Has another program start it from now on: that gets these arguments, the program's path, and its arguments.
    pub fn start_through(&mut self, program: &str, arguments: &[&str]) {
        let started = self.launch.program.display().to_string();
        self.launch.program = program.into();
        let before = arguments.iter().map(|&argument| argument.to_owned()).chain([started]);
        self.launch.arguments.splice(0..0, before);
    }

    /// Has another build of its program be started from now on, as an upgrade does.
    pub fn replace_program(&mut self, program: PathBuf) {
        self.launch.program = program;
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Its process id while it has not been waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where its stderr is.
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// Waits until `ready` says so. When the process ends first, the error has the end of its log.
    pub fn wait_ready(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let name = self.launch.name.clone();
        let waited = wait_for(&format!("{name} to be ready"), limit, || {
            if !self.is_running() {
                bail!("{name} ended before it was ready");
            }
            Ok(ready().then_some(()))
        });
        waited.with_context(|| format!("the end of its log:\n{}", self.tail()))
    }

    /// Asks it to stop by SIGTERM and waits for the end. It is an error when it does not end in time.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let name = self.launch.name.clone();
        let status = wait_for(&format!("{name} to stop"), STOP, || {
            Ok(self.child.as_mut().map(Child::try_wait).transpose()?.flatten())
        })?;
        self.child = None;
        Ok(status)
    }

    /// Kills it by SIGKILL, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Sends it a signal, for instance SIGSTOP to let it hang.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("{} does not run", self.launch.name))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.launch.name))
    }

    /// The last lines of its stderr.
    pub fn tail(&self) -> String {
        let bytes = fs::read(&self.launch.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "a failing test shows the server's side on its stderr")]
    fn drop(&mut self) {
        // A server that the test left stopped (SIGSTOP) dies by SIGKILL too.
        let _ = self.kill();
        if std::thread::panicking() {
            eprintln!("---- the end of {}'s log ----\n{}\n", self.launch.name, self.tail());
        }
    }
}
