//! `manuals FOLDER` writes, for each program, `FOLDER/PROGRAM/man/*.1` (a page for each of its commands, too) and
//! `FOLDER/PROGRAM/{bash,zsh,fish}`, named as these shells look for them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory, Parser};
use clap_complete::Shell;

/// Writes manuals and completions.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to; it is made if it is not there.
    folder: PathBuf,
}

fn write(program: &Command, folder: &Path) -> io::Result<()> {
    let name = program.get_name().to_owned();
    let folder = folder.join(&name);
    let man = folder.join("man");
    fs::create_dir_all(&man)?;
    // `snapshot-api pki create` has its page, `snapshot-api help pki create` none.
    clap_mangen::generate_to(program.clone().disable_help_subcommand(true), &man)?;
    for (shell, at) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let folder = folder.join(at);
        fs::create_dir_all(&folder)?;
        let made = clap_complete::generate_to(shell, &mut program.clone(), &name, &folder)?;
        if matches!(shell, Shell::Bash) {
            // bash-completion looks for it by the program's own name.
            fs::rename(made, folder.join(&name))?;
        }
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a command that fails says so to who started it")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let programs = [
        snapshot_agent::arguments::Arguments::command(),
        snapshot_api::arguments::Arguments::command(),
        gateway::arguments::Arguments::command(),
        snapctl::arguments::Arguments::command(),
    ];
    for program in programs {
        if let Err(error) = write(&program, &arguments.folder) {
            eprintln!("manuals: {}: {error}", arguments.folder.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
