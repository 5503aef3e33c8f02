//! `say SOCKET r` asks a guest what is on its disk and in its RAM; `say SOCKET wX` lets it write X to both.

#![expect(clippy::print_stdout, reason = "the guest's answer is the command's answer")]

use std::path::PathBuf;

use anyhow::{Result, bail};
use tests::guest::ask;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, words] = arguments.as_slice() else { bail!("usage: say SOCKET r|wX") };
    let report = match words.strip_prefix('w').map(|marker| marker.chars().collect::<Vec<_>>()) {
        None if words == "r" => ask(&PathBuf::from(socket), None)?,
        Some(marker) if marker.len() == 1 => ask(&PathBuf::from(socket), marker.first().copied())?,
        _ => bail!("usage: say SOCKET r|wX"),
    };
    println!("disk={} ram={} boots={}", report.disk, report.ram, report.boots);
    Ok(())
}
