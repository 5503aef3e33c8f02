//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const AFTER: &str = "\
Exit codes:
  0  done
  1  refused, or begun and failed; the reason is on standard error
  2  the command line, the settings or a name cannot be used
  3  the service or the machine's host cannot be reached; the same command may work later
  4  the token is missing, expired, or does not allow this
  5  not confirmed; nothing was done

Settings, in this order: flags, SNAPCTL_ENDPOINT, SNAPCTL_CA, SNAPCTL_TOKEN or SNAPCTL_TOKEN_FILE, and the file given by
--config or SNAPCTL_CONFIG, or else ~/.config/snapctl.toml or /etc/ravada-snapshots/snapctl.toml, whichever is there first.

A token comes from Ravada, or from an operator by `snapshot-api token mint`.";

/// Snapshots of virtual machines: take them, list them, go back to them.
#[derive(Debug, Parser)]
#[command(name = "snapctl", version, after_long_help = AFTER, after_help = "See --help for settings and exit codes.")]
pub struct Arguments {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// The service: https://HOST:PORT, or http:// where that is this machine [env: SNAPCTL_ENDPOINT].
    #[arg(long, global = true, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The CA certificates that the service's own must be of, PEM [env: SNAPCTL_CA] [default: those of the system].
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The file with the token; - for standard input [env: SNAPCTL_TOKEN_FILE; SNAPCTL_TOKEN is the token itself].
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The file with the settings [env: SNAPCTL_CONFIG].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print protobuf's JSON, as the gateway gives it, for programs.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the hypervisors: whether they answer, their versions, space and running operations.
    Hosts,
    /// List the machines that the token is for.
    Vms {
        /// Only those of this host.
        #[arg(long)]
        host: Option<String>,
    },
    /// Show a machine's snapshots as a tree.
    Snapshots(Machine),
    /// Take a snapshot.
    Create(Create),
    /// Go back to a snapshot. What the machine did since is lost, unless it is saved.
    Revert(Revert),
    /// Delete a snapshot; what it holds goes into what follows it.
    Remove(Remove),
    /// Give a snapshot another name or description, or protect it from being deleted.
    Edit(Edit),
    /// Delete all snapshots of a machine, before it is removed or after.
    Purge(Purge),
    /// List what is going on and what was done, or look at one operation.
    Operations(Operations),
    /// Stop an operation that can still be stopped.
    Cancel {
        /// The operation: its id, or operations/ID.
        operation: String,
    },
    /// List orphans: images of detached disks and other files that hold a state and that nothing uses any more; for administrators.
    Orphans {
        /// Only those of this host.
        #[arg(long)]
        host: Option<String>,
    },
    /// Delete an orphan and the state that it holds, for good; for administrators.
    DeleteOrphan(DeleteOrphan),
    /// Say what is wrong between here and the machines, and what to do about it. Each service has its own, for its own
    /// machine: `snapshot-agent doctor`, `snapshot-api doctor`, `snapshot-gateway doctor`.
    Doctor,
    /// Have the service read everything anew from a host.
    Reconcile {
        /// The host's name.
        host: String,
    },
}

/// A machine.
#[derive(Debug, Args)]
pub struct Machine {
    /// The machine: its name or its UUID.
    #[arg(value_name = "VM")]
    pub vm: String,
}

/// A snapshot of a machine.
#[derive(Debug, Args)]
pub struct Chosen {
    /// The machine: its name or its UUID.
    #[arg(value_name = "VM")]
    pub vm: String,
    /// The snapshot: its id, or its name where only one has it.
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: String,
}

/// How a change is made.
#[derive(Debug, Args)]
pub struct Change {
    /// Say what would be done and lost, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait for the end; print the operation that was begun.
    #[arg(long, conflicts_with = "dry_run")]
    pub no_wait: bool,
    /// A UUID by which a repeated command is recognised, so that it is carried out once [default: a new one].
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<String>,
}

/// `create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The machine: its name or its UUID.
    #[arg(value_name = "VM")]
    pub vm: String,
    /// What to call the snapshot.
    pub name: String,
    /// What to say about it.
    #[arg(long, default_value = "")]
    pub description: String,
    /// What goes into it [default: the disks; of a running VM on a host without live snapshots the running state too].
    #[arg(long)]
    pub content: Option<Content>,
    /// Where it is kept [default: as the host prefers].
    #[arg(long)]
    pub storage: Option<Storage>,
    /// Have the guest agent freeze the file systems for the moment.
    #[arg(long)]
    pub quiesce: bool,
    /// Take it without, where they cannot be frozen; the snapshot says so.
    #[arg(long, requires = "quiesce")]
    pub allow_crash_consistent: bool,
    /// How it is made.
    #[command(flatten)]
    pub change: Change,
}

/// What goes into a snapshot.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Content {
    /// The disks alone.
    Disks,
    /// The disks and the running state.
    Memory,
}

/// Where a snapshot is kept.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Storage {
    /// Inside the images.
    Internal,
    /// In files of its own.
    External,
}

/// `revert`.
#[derive(Debug, Args)]
pub struct Revert {
    /// Which.
    #[command(flatten)]
    pub chosen: Chosen,
    /// Take a snapshot of the present first, of this name.
    #[arg(long, value_name = "NAME")]
    pub save_current: Option<String>,
    /// What the machine does afterwards [default: as when the snapshot was taken].
    #[arg(long)]
    pub then: Option<Then>,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// How it is made.
    #[command(flatten)]
    pub change: Change,
}

/// What a machine does after a revert.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Then {
    /// As when the snapshot was taken.
    Recorded,
    /// It runs.
    Running,
    /// It is off.
    Off,
}

/// `remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// Which.
    #[command(flatten)]
    pub chosen: Chosen,
    /// Which others go with it.
    #[arg(long, default_value = "only")]
    pub scope: Scope,
    /// Delete protected ones too; takes a token with the action `force`, which administrators have.
    #[arg(long)]
    pub force: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// How it is made.
    #[command(flatten)]
    pub change: Change,
}

/// What is deleted.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Scope {
    /// The snapshot alone.
    Only,
    /// It and all that were taken from it.
    Subtree,
    /// All that were taken from it, and not it.
    Descendants,
}

/// `edit`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct Edit {
    /// Which.
    #[command(flatten)]
    pub chosen: Chosen,
    /// Its new name.
    #[arg(long, group = "what")]
    pub name: Option<String>,
    /// Its new description.
    #[arg(long, group = "what")]
    pub description: Option<String>,
    /// Whether it is protected from being deleted.
    #[arg(long, group = "what", value_name = "yes|no", value_parser = yes_or_no)]
    pub protect: Option<bool>,
    /// How it is made.
    #[command(flatten)]
    pub change: Change,
}

/// `purge`.
#[derive(Debug, Args)]
pub struct Purge {
    /// The machine: its name, or its UUID where it is gone already.
    #[arg(value_name = "VM")]
    pub vm: String,
    /// Delete protected ones too; takes a token with the action `force`, which administrators have.
    #[arg(long)]
    pub force: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// How it is made.
    #[command(flatten)]
    pub change: Change,
}

/// `delete-orphan`.
#[derive(Debug, Args)]
pub struct DeleteOrphan {
    /// The orphan: its id, the beginning of it that `orphans` lists, or hosts/HOST/orphans/ID.
    #[arg(value_name = "NAME")]
    pub orphan: String,
    /// Say what would be deleted, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// `operations`.
#[derive(Debug, Args)]
pub struct Operations {
    /// One operation: its id, or operations/ID.
    pub operation: Option<String>,
    /// Only those of this machine, by name or UUID.
    #[arg(long, value_name = "VM", conflicts_with = "operation")]
    pub vm: Option<String>,
    /// Only those that have not ended.
    #[arg(long, conflicts_with = "operation")]
    pub active: bool,
    /// The most to list, the newest first.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub most: u32,
    /// Wait until the operation has ended, with a bar; the command's end is then the operation's.
    #[arg(long, requires = "operation")]
    pub follow: bool,
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        other => Err(format!("{other} is neither yes nor no")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_says_what_it_is() {
        let mut commands = vec![Arguments::command()];
        while let Some(command) = commands.pop() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments().filter(|it| it.get_id() != "help" && it.get_id() != "version") {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            commands.extend(command.get_subcommands().cloned());
        }
    }
}
