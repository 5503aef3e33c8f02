//! The line to a Linux guest: a shell on its serial port (`tests/guest/init`).
//!
//! Every line that is sent carries a mark of its own and is answered with it, so that an answer that was not waited for is
//! not taken for another one's. A line that was sent before the shell was there is lost; so the first question is asked
//! until it is answered, and repeating it is harmless.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

/// How long the shell may take to say that it is there, before it is asked again.
const TRY: Duration = Duration::from_secs(2);
/// Between two attempts to connect.
const CONNECT: Duration = Duration::from_millis(50);

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it printed.
    pub output: String,
    /// Its exit status.
    pub status: i32,
}

impl Answer {
    /// What it printed, if it succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(self.status == 0, "the command ended with {}: {}", self.status, self.output);
        Ok(self.output)
    }
}

pub(super) fn run(socket: &Path, command: &str, limit: Duration) -> Result<Answer> {
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(mut stream) = UnixStream::connect(socket)
            && exchange(&mut stream, "true", Instant::now() + TRY).is_ok()
        {
            return exchange(&mut stream, command, deadline);
        }
        if Instant::now() >= deadline {
            bail!("the guest at {} has no shell after {limit:?}", socket.display());
        }
        std::thread::sleep(CONNECT);
    }
}

fn exchange(stream: &mut UnixStream, command: &str, deadline: Instant) -> Result<Answer> {
    let mark = uuid::Uuid::new_v4().simple().to_string();
    // In one line, because a line is what the shell reads; the mark is put together there, so that an echo is not it.
    stream.write_all(format!("echo; echo BEGIN\"\"{mark}; {command}\n").as_bytes())?;
    let begin = format!("BEGIN{mark}\n");
    let mut heard = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer to {command:?}; heard {heard:?}");
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => bail!("the guest's QEMU closed the line"),
            Ok(count) => heard.push_str(&String::from_utf8_lossy(&buffer[..count]).replace('\r', "")),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        let Some((_, said)) = heard.split_once(&begin) else { continue };
        if let Some(answer) = parse(said) {
            return Ok(answer);
        }
    }
}

/// The output up to the shell's own last line, `DONE <status>`.
fn parse(said: &str) -> Option<Answer> {
    let start = if said.starts_with("DONE ") { 0 } else { said.find("\nDONE ")? + 1 };
    let (line, _) = said[start..].split_once('\n')?;
    let status = line.strip_prefix("DONE ")?.trim().parse().ok()?;
    Some(Answer { output: said[..start].to_owned(), status })
}

#[cfg(test)]
mod tests {
    use super::{Answer, parse};

    #[test]
    fn an_answer_is_what_was_printed_and_the_status() {
        let answer = |output: &str, status| Some(Answer { output: output.to_owned(), status });
        assert_eq!(parse("a\nb\nDONE 0\n"), answer("a\nb\n", 0));
        assert_eq!(parse("DONE 127\n"), answer("", 127));
        assert_eq!(parse("a\nDONE 0"), None);
        assert_eq!(parse("a\n"), None);
    }
}
