//! Every command line that a document, an example or a unit shows is one that the programs understand.
//!
//! A line of code is a whole command and must parse. A command between backticks, in prose or in what a program says, may be only
//! the beginning of one (`snapshot-api token mint`): what it has must be right. Nothing is run.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

mod shell;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::{env, fs};

use clap::error::ErrorKind;
use clap::{Command, CommandFactory};

/// A command line, and where it stands.
#[derive(Debug)]
struct Shown {
    place: String,
    words: Vec<String>,
    /// Whether it may be the beginning of one.
    mention: bool,
}

fn programs() -> BTreeMap<String, Command> {
    let all = [
        snapshot_agent::arguments::Arguments::command(),
        snapshot_api::arguments::Arguments::command(),
        gateway::arguments::Arguments::command(),
        snapctl::arguments::Arguments::command(),
    ];
    all.into_iter().map(|program| (program.get_name().to_owned(), program)).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// The files that are looked at, with their texts.
fn files() -> Vec<(String, String)> {
    let listed = Process::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    let looked_at = |name: &&str| {
        let shown = ["examples/", "packaging/", "docker-compose.yml", "Dockerfile", "ravada/", "scripts/"];
        name.ends_with(".md") || name.ends_with(".rs") || shown.iter().any(|folder| name.starts_with(folder))
    };
    let this = |name: &&str| !name.starts_with("packaging/manuals/tests/");
    let read = |name: &str| fs::read_to_string(root().join(name)).ok().map(|text| (name.to_owned(), text));
    names.lines().filter(looked_at).filter(this).filter_map(read).collect()
}

/// All command lines of a file.
fn shown(name: &str, text: &str) -> Vec<Shown> {
    let mut found = Vec::new();
    let mut note = |line: usize, commands: Vec<Vec<String>>, mention: bool| {
        found.extend(commands.into_iter().map(|words| Shown { place: format!("{name}:{line}"), words, mention }));
    };
    let (is_prose, is_code) = (name.ends_with(".md"), name.ends_with(".rs"));
    // Its indented lines are drawings.
    let is_drawn = name == "ARCHITECTURE.md";
    let is_script = ![".rs", ".pm", ".t", ".PL", "Cargo.toml"].iter().any(|end| name.ends_with(end));
    // Comments are prose, but for those that show how an example is used.
    let is_example = name.starts_with("examples/");
    if is_script && !is_drawn {
        for (line, code) in shell::lines(text) {
            // In a document code is what is indented or fenced; elsewhere it is all but what a comment says.
            let code = match (is_prose, code.strip_prefix("    ")) {
                (true, None) => continue,
                (true, Some(code)) => code.to_owned(),
                (false, _) if code.trim_start().starts_with('#') && !is_example => continue,
                (false, _) => {
                    let code = code.trim_start().trim_start_matches(['#', ' ']);
                    code.replace("ExecStart=", "").replace("/usr/bin/", "")
                }
            };
            note(line, shell::commands(&code), false);
        }
    }
    if is_prose || is_code {
        for (line, quoted) in shell::quoted(text) {
            note(line, shell::commands(&quoted), true);
        }
    }
    let pod = text.match_indices("C<").filter_map(|(at, _)| Some((at, text[at + 2..].split_once('>')?.0)));
    for (at, quoted) in pod.filter(|_| name.ends_with(".pm")) {
        note(text[..at].lines().count(), shell::commands(quoted), true);
    }
    found
}

/// Something that stands for a value: `DOMAIN`, `SEQUENCE:HASH`, `{}`, `$uuid`, `…`.
fn stands_for_a_value(word: &str) -> bool {
    word.contains(['$', '{', '…', '<']) || word.chars().all(|c| c.is_ascii_uppercase() || "_-:.[]".contains(c))
}

/// What is wrong with a command line, if anything is.
fn fault(programs: &BTreeMap<String, Command>, shown: &Shown) -> Option<String> {
    let program = programs.get(&shown.words[0])?.clone();
    // Brackets say that something may be left out: with it and without it.
    let with: Vec<String> = shown.words.iter().map(|word| word.trim_matches(['[', ']']).to_owned()).collect();
    let mut depth = 0_i32;
    let without = shown.words.iter().filter(|word| {
        let inside = depth > 0 || word.starts_with('[');
        depth += i32::from(word.starts_with('[')) - i32::from(word.ends_with(']'));
        !inside
    });
    let open = shown.mention || with.iter().any(|word| word == "…" || word == "...");
    let readings = [with.clone(), without.cloned().collect()];
    readings.into_iter().find_map(|words| {
        let words = words.into_iter().filter(|word| word != "…" && word != "...");
        let error = program.clone().try_get_matches_from(words).err()?;
        let told = error.to_string();
        let fine = match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
            ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => open,
            ErrorKind::InvalidValue if open && told.contains("a value is required") => true,
            ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
                let value = told.split('\'').nth(1).unwrap_or_default();
                stands_for_a_value(value)
            }
            _ => false,
        };
        (!fine).then(|| told.lines().next().unwrap_or_default().to_owned())
    })
}

#[test]
fn every_command_line_that_is_shown_is_understood() {
    let programs = programs();
    let found: Vec<Shown> = files().iter().flat_map(|(name, text)| shown(name, text)).collect();
    let ours: Vec<&Shown> = found.iter().filter(|shown| programs.contains_key(&shown.words[0])).collect();
    let faults: Vec<String> = ours
        .iter()
        .filter_map(|shown| Some(format!("{}: {}: {}", shown.place, shown.words.join(" "), fault(&programs, shown)?)))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // It does look at them.
    let of = |program: &str, mention: bool| {
        ours.iter().filter(|shown| shown.words[0] == program && shown.mention == mention).count()
    };
    for (program, whole, mentioned) in
        [("snapshot-api", 15, 15), ("snapshot-agent", 4, 2), ("snapshot-gateway", 3, 0), ("snapctl", 15, 5)]
    {
        let counts = (of(program, false), of(program, true));
        assert!(counts.0 >= whole && counts.1 >= mentioned, "{program}: {counts:?}");
    }
}

#[test]
fn what_is_wrong_with_a_command_line_is_found() {
    let programs = programs();
    let of = |text: &str, mention: bool| {
        let words = shell::commands(text).pop().unwrap();
        fault(&programs, &Shown { place: String::new(), words, mention })
    };
    for (text, mention) in [
        ("snapshot-api audit verify --catalog x", true),
        ("snapshot-api audit check", true),
        ("snapshot-api audit verify", false),
        ("snapshot-api backup --config api.toml", false),
        ("snapshot-api audit verify --database x [--before 1:2]", false),
        ("snapshot-agent --conf agent.toml", false),
        ("snapctl snapshots a b", true),
        ("snapctl create vm name --content everything", true),
    ] {
        assert!(of(text, mention).is_some(), "{text}");
    }
    for (text, mention) in [
        ("snapshot-api audit verify", true),
        ("snapshot-api backup --config api.toml --to x-$(date +%F).db", false),
        ("snapshot-api audit verify --database x [--after SEQUENCE:HASH]", false),
        ("snapshot-api doctor --config …", false),
        (
            "token=$(snapshot-api token mint --key k --issuer i --kid 1 --subject s --vm \"$uuid\" --actions read) && curl x",
            false,
        ),
    ] {
        assert_eq!(of(text, mention), None, "{text}");
    }
}
