//! `make faults`: kills, cuts and full disks against a whole system, and an independent checker. Exits 0 when it found
//! nothing.
//!
//!     faults --kills 100 --seed 7 [--foreign 1000] [--round 3] [--kills-a-round 20] [--machines 4] [--keep FOLDER]
//!         [--storage internal]
//!
//! `--foreign` says how many foreign operations administrators do beside that, in all. `--seed random` takes another seed each time.
//! `--sabotage true` does wrong behind everybody's back before the check, to see that it is found.
//! `--round` does one round of that campaign again. It starts itself anew in a mount namespace of its own, so that what
//! it mounts ends with it.

#![expect(clippy::print_stdout, reason = "what was found is what the command is for")]

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use proto::v1;
use tests::faults::campaign::{Options, Round};
use tests::faults::history::Counts;
use tests::faults::space::{in_new_namespace, in_own_namespace};
use tests::tools::build_dir;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> Result<ExitCode> {
    if !in_own_namespace()? {
        let error = in_new_namespace(&std::env::current_exe()?)?.args(std::env::args_os().skip(1)).exec();
        return Err(error).context("cannot start unshare");
    }
    let options = parse(std::env::args().skip(1))?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(12).enable_all().build()?.block_on(until_told(options))
}

/// A signal ends the campaign in good order: everything it has started is dropped.
async fn until_told(options: Options) -> Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        ended = rounds(options) => ended,
        _ = interrupt.recv() => Ok(ExitCode::FAILURE),
        _ = terminate.recv() => Ok(ExitCode::FAILURE),
    }
}

async fn rounds(options: Options) -> Result<ExitCode> {
    println!("faults: seed {}", options.seed);
    let (mut all, mut found) = (Counts::new(), 0);
    for (number, kills) in options.rounds() {
        let Round { violations, counts, kept, .. } = options.round(number, kills).await?;
        for (what, count) in counts {
            *all.entry(what).or_default() += count;
        }
        let sum = |of: &str| all.iter().filter(|(what, _)| what.starts_with(of)).map(|(_, count)| count).sum::<u64>();
        let (killed, foreign) = (sum("kill "), sum("foreign "));
        println!(
            "faults: seed {} round {number}: {} violations, {killed} kills and {foreign} foreign operations so far",
            options.seed,
            violations.len()
        );
        for violation in &violations {
            println!("  {violation}");
        }
        if let Some(folder) = kept {
            println!("  the history and the logs are in {}", folder.display());
            println!("  again: {}", again(&options, number));
        }
        found += violations.len();
    }
    println!("faults: seed {}, in all", options.seed);
    for (what, count) in &all {
        println!("  {count:6} {what}");
    }
    println!("faults: {found} violations");
    Ok(if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn again(options: &Options, round: u32) -> String {
    let storage = match options.storage {
        v1::StorageKind::External => " --storage external",
        _ if options.live => " --storage live",
        _ => "",
    };
    format!(
        "target/debug/faults --kills {} --foreign {} --kills-a-round {} --machines {} --seed {} --round {round}{storage}",
        options.kills, options.foreign, options.kills_a_round, options.machines, options.seed
    )
}

/// A seed as it is told: a number, or `random`.
fn seed(word: &str) -> Result<u64> {
    if word == "random" {
        // Short enough to be typed.
        return Ok(u64::from(uuid::Uuid::new_v4().as_fields().0));
    }
    word.parse().with_context(|| format!("{word} is neither a number nor random"))
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Options> {
    // Beside the folder with the binaries, one of which is called so.
    let keep = build_dir()?.with_file_name("faults");
    let mut options = Options {
        seed: 1,
        kills: 100,
        foreign: 0,
        kills_a_round: 20,
        only: None,
        machines: 4,
        sabotage: false,
        storage: v1::StorageKind::Unspecified,
        live: false,
        keep,
    };
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--seed" => options.seed = seed(&value)?,
            "--kills" => options.kills = value.parse()?,
            "--foreign" => options.foreign = value.parse()?,
            "--kills-a-round" => options.kills_a_round = value.parse::<u32>()?.max(1),
            "--round" => options.only = Some(value.parse()?),
            "--sabotage" => options.sabotage = value.parse()?,
            "--machines" => options.machines = value.parse()?,
            "--keep" => options.keep = value.into(),
            "--storage" => {
                options.live = value == "live";
                options.storage = match value.as_str() {
                    "internal" => v1::StorageKind::Internal,
                    "external" => v1::StorageKind::External,
                    "live" => v1::StorageKind::Unspecified,
                    _ => bail!("--storage is internal, external or live"),
                }
            }
            _ => bail!("{word} is not known"),
        }
    }
    Ok(options)
}
