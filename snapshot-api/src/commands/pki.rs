//! `pki`: a certificate authority for development and small installations.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use mtls::dev_ca::{self, DevCaError, Leaf};

/// What to make.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a certificate authority: ca.pem and ca.key.
    Create(Create),
    /// Make a certificate that the authority signs: NAME.pem and NAME.key.
    Issue(Issue),
    /// Make a certificate anew that is there: the same names, a new key.
    Renew(Renew),
    /// Take a certificate back: crl.pem has it from then on. Copy that file to every service's `[tls] crl`.
    Revoke(Revoke),
    /// Make crl.pem anew, with what is in it, before its time is over.
    Crl(Crl),
}

/// A certificate that is there.
#[derive(Debug, Args)]
pub struct Renew {
    /// The authority's folder.
    #[arg(long)]
    dir: PathBuf,
    /// The name of its files.
    #[arg(long)]
    name: String,
    /// How many days it is valid.
    #[arg(long, default_value_t = 365)]
    days: u32,
}

/// A certificate that counts no longer.
#[derive(Debug, Args)]
pub struct Revoke {
    /// The authority's folder.
    #[arg(long)]
    dir: PathBuf,
    /// The certificate, or a copy of it: revoke it before it is renewed in place.
    #[arg(long)]
    certificate: PathBuf,
}

/// The revocation list.
#[derive(Debug, Args)]
pub struct Crl {
    /// The authority's folder.
    #[arg(long)]
    dir: PathBuf,
    /// How many days it is valid.
    #[arg(long, default_value_t = 90)]
    days: u32,
}

/// A certificate authority.
#[derive(Debug, Args)]
pub struct Create {
    /// The folder for its files.
    #[arg(long)]
    dir: PathBuf,
    /// The trust domain of every identity it vouches for.
    #[arg(long)]
    trust_domain: String,
    /// How many days it is valid.
    #[arg(long, default_value_t = 3650)]
    days: u32,
    /// Replace one that is there. What it signed is worthless afterwards.
    #[arg(long)]
    force: bool,
}

/// A certificate.
#[derive(Debug, Args)]
pub struct Issue {
    /// The authority's folder.
    #[arg(long)]
    dir: PathBuf,
    /// The name of its files.
    #[arg(long)]
    name: String,
    /// Whom it names, below the trust domain: `snapshot-api`, `gateway` or `agent/HOST`.
    #[arg(long)]
    spiffe_path: String,
    /// A DNS name it is good for, too; may be repeated.
    #[arg(long)]
    dns: Vec<String>,
    /// An IP address it is good for, too; may be repeated.
    #[arg(long)]
    ip: Vec<IpAddr>,
    /// How many days it is valid.
    #[arg(long, default_value_t = 365)]
    days: u32,
}

/// Carries the command out.
pub fn run(command: Command) -> Result<(), DevCaError> {
    match command {
        Command::Create(create) => dev_ca::create(&create.dir, &create.trust_domain, &[], create.days, create.force),
        Command::Issue(issue) => {
            let leaf =
                Leaf { file_stem: issue.name, spiffe_path: issue.spiffe_path, dns: issue.dns, ip_addrs: issue.ip };
            dev_ca::issue(&issue.dir, &leaf, issue.days)
        }
        Command::Renew(renew) => dev_ca::renew(&renew.dir, &renew.name, renew.days),
        Command::Revoke(revoke) => dev_ca::revoke(&revoke.dir, &revoke.certificate),
        Command::Crl(crl) => dev_ca::refresh(&crl.dir, crl.days),
    }
}
