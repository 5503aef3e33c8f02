//! What is printed, and where: answers on standard output, everything else on standard error.

use std::io::{self, IsTerminal as _, Write as _};

use prost::Message;

use crate::failure::Failure;
use crate::json;

/// Where a command prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    json: bool,
}

impl Out {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a program reads it.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints a message of the public API: as JSON, or as `show` puts it for a person.
    pub(crate) fn answer<M: Message>(
        self,
        name: &str,
        message: &M,
        show: impl FnOnce(&M) -> String,
    ) -> Result<(), Failure> {
        let text = if self.json { format!("{}\n", json::of(name, message)?) } else { show(message) };
        print(&text)
    }

    /// Tells a person something on the way to the answer.
    pub(crate) fn aside(self, text: &str) {
        if !self.json {
            // Nothing is lost with it that the end does not tell.
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }

    /// Says why a command failed.
    pub(crate) fn failed(self, failure: &Failure) {
        // Whoever reads only the beginning, such as `head`, is not a failure to be told of.
        if matches!(failure, Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return;
        }
        let text = if self.json { format!("{}\n", failure.json()) } else { failure.told() };
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Whether there is somebody to be asked.
    pub(crate) fn is_conversation(self) -> bool {
        !self.json && io::stdin().is_terminal() && io::stderr().is_terminal()
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
