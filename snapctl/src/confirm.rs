//! Asking before something is lost.

use std::io::{self, BufRead as _};

use crate::failure::Failure;
use crate::out::Out;

/// Goes on if `yes`, or if the person at the terminal says so. Where there is none, nothing is done.
pub(crate) fn confirm(out: &Out, yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !out.is_conversation() {
        return Err(Failure::NotConfirmed(
            "nothing was done: without a terminal to ask at, confirm with --yes".to_owned(),
        ));
    }
    out.aside(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::NotConfirmed("nothing was done".to_owned())),
    }
}
