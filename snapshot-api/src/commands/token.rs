//! `token`: issuer keys, and tokens for operators.

use std::collections::BTreeSet;
use std::path::PathBuf;

use capability::{KeyError, Signer, generate_issuer_key};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use snapshot_core::authority::{Action, Grant, VmSelector};

use crate::clock::Clock;

/// What to make.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an issuer's key: ISSUER.key, and ISSUER.jwks.json for those who check its tokens.
    CreateKey(CreateKey),
    /// Mint a token and print it, with the secret that it is bound to.
    Mint(Mint),
}

/// An issuer's key.
#[derive(Debug, Args)]
pub struct CreateKey {
    /// The folder for the two files.
    #[arg(long)]
    dir: PathBuf,
    /// The issuer, `iss` in its tokens.
    #[arg(long)]
    issuer: String,
    /// The key's name, `kid` in its tokens. A new one is added to the key set that is there.
    #[arg(long)]
    kid: String,
}

/// A token.
#[derive(Debug, Args)]
pub struct Mint {
    /// The issuer's private key.
    #[arg(long)]
    key: PathBuf,
    /// The issuer.
    #[arg(long)]
    issuer: String,
    /// The key's name.
    #[arg(long)]
    kid: String,
    /// Whom the token is for.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    subject: String,
    /// The machine it is for, by UUID, or `*` for all; may be repeated.
    #[arg(long, required = true, value_parser = vm)]
    vm: Vec<VmSelector>,
    /// What it allows, with commas between: read, create, update, revert, delete, purge, force, admin.
    #[arg(long, required = true, value_delimiter = ',', value_parser = action)]
    actions: Vec<Action>,
    /// Its life in seconds, 900 at most.
    #[arg(long, default_value_t = 300)]
    lifetime: i64,
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|error| error.to_string())
}

fn vm(text: &str) -> Result<VmSelector, String> {
    parse(text)
}

fn action(text: &str) -> Result<Action, String> {
    parse(text)
}

/// Carries the command out; the token, with its secret, goes to standard output alone.
#[expect(clippy::print_stdout, reason = "the token is the command's answer")]
pub fn run(command: Command) -> Result<(), KeyError> {
    match command {
        Command::CreateKey(new) => {
            let key = new.dir.join(format!("{}.key", new.issuer));
            let jwks = new.dir.join(format!("{}.jwks.json", new.issuer));
            generate_issuer_key(&key, &jwks, &new.kid)
        }
        Command::Mint(mint) => {
            let actions: BTreeSet<Action> = mint.actions.into_iter().collect();
            let grants = mint.vm.into_iter().map(|vm| Grant { vm, actions: actions.clone() }).collect();
            let signer = Signer::load(&mint.key, &mint.kid, &mint.issuer)?;
            println!("{}", signer.mint(&mint.subject, grants, mint.lifetime, Clock::system().now_s())?);
            Ok(())
        }
    }
}
