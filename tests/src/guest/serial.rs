//! The line to a mini guest: its serial port, which QEMU serves on a unix socket.
//!
//! What makes it robust:
//! - QEMU is restarted by libvirt's revert, so any read may end; then it connects and asks again.
//! - QEMU drops what the guest says while nobody is connected, so the first words after a boot may be lost; a question
//!   that stays without an answer is asked again.
//! - A question that came too early may be answered late, so one answer too many may be on the line. It is thrown away
//!   before the next question, and of several answers the last one counts: the guest answers in order.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Report;

/// How long one question waits for its answer.
const TRY: Duration = Duration::from_millis(1000);
/// How long the line must be silent to be taken for quiet. The guest's answer takes a millisecond or two.
const QUIET: Duration = Duration::from_millis(40);
/// Between two attempts to connect: the socket is there as soon as QEMU runs.
const CONNECT: Duration = Duration::from_millis(10);

/// A serial port on a unix socket.
#[derive(Debug)]
pub(super) struct Serial {
    path: PathBuf,
    stream: Mutex<Option<UnixStream>>,
}

impl Serial {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, stream: Mutex::new(None) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends `question` until a report comes that `accept` takes. Repeating a question is harmless to the guest.
    pub(super) fn ask(&self, question: &str, limit: Duration, accept: impl Fn(&Report) -> bool) -> Result<Report> {
        let mut line = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + limit;
        let mut heard = String::new();
        loop {
            let stream = line.take().map_or_else(|| UnixStream::connect(&self.path), Ok);
            if let Ok(mut stream) = stream {
                let patience = TRY.min(deadline.saturating_duration_since(Instant::now()));
                if let Ok(answer) = exchange(&mut stream, question, patience, &accept, &mut heard) {
                    *line = Some(stream);
                    return Ok(answer);
                }
                // Without an answer the connection is closed: what it still held must not be taken for a later one.
            }
            if Instant::now() >= deadline {
                let path = self.path.display();
                bail!("the guest at {path} did not answer {question:?} as expected within {limit:?}; heard {heard:?}");
            }
            std::thread::sleep(CONNECT);
        }
    }
}

fn exchange(
    stream: &mut UnixStream,
    question: &str,
    patience: Duration,
    accept: &impl Fn(&Report) -> bool,
    heard: &mut String,
) -> Result<Report> {
    let stale = Instant::now() + patience;
    while Instant::now() < stale && !read_some(stream, QUIET)?.is_empty() {}
    stream.write_all(question.as_bytes())?;
    let start = heard.len();
    let mut last = None;
    let deadline = Instant::now() + patience;
    loop {
        let wait = if last.is_some() { QUIET } else { deadline.saturating_duration_since(Instant::now()) };
        let text = read_some(stream, wait)?;
        heard.push_str(&text);
        // Complete lines only: the rest of one follows.
        let whole = heard[start..].rfind('\n').map_or("", |end| &heard[start..start + end]);
        last = whole.lines().filter_map(parse).rfind(accept);
        if text.is_empty() && (last.is_some() || Instant::now() >= deadline) {
            return last.ok_or_else(|| anyhow::anyhow!("no answer"));
        }
    }
}

/// What comes within `wait`, or nothing. The end of the connection is an error.
fn read_some(stream: &mut UnixStream, wait: Duration) -> Result<String> {
    // A timeout of zero would mean none at all.
    stream.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
    let mut buffer = [0; 1024];
    match stream.read(&mut buffer) {
        Ok(0) => bail!("the guest's QEMU closed the line"),
        Ok(count) => Ok(String::from_utf8_lossy(&buffer[..count]).into_owned()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(String::new()),
        Err(error) => Err(error.into()),
    }
}

/// Reads `D=A M=A B=1` with an optional `X=A`, which after a boot follows `LAB ready`.
fn parse(line: &str) -> Option<Report> {
    let field = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.chars().next());
    let boots = u8::try_from(field("B=")?).ok()?.checked_sub(b'0')?;
    Some(Report { disk: field("D=")?, ram: field("M=")?, boots, second_disk: field("X=") })
}

#[cfg(test)]
mod tests {
    use super::{Report, parse};

    #[test]
    fn a_report_is_read_with_and_without_the_banner_and_the_second_disk() {
        let plain = Report { disk: 'A', ram: 'B', boots: 2, second_disk: None };
        assert_eq!(parse("D=A M=B B=2 \r"), Some(plain));
        assert_eq!(parse("LAB ready D=A M=B B=2 \r"), Some(plain));
        assert_eq!(parse("D=A M=B B=2 X=_ \r"), Some(Report { second_disk: Some('_'), ..plain }));
        assert_eq!(parse("D=A M="), None);
    }
}
