//! `doctor`: what is wrong with the service on this machine, and what to do about it.
//!
//! It reads what the service reads and calls whom it calls, with the same files, and changes nothing. The service may run
//! meanwhile or not. Run as another user it tells what that user may do.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use capability::{Signer, Verifier};
use clap::Args;
use doctor::{Finding, Report, clock};

use crate::clock::Clock;
use crate::config::Config;
use crate::store;

/// What to examine.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The service's configuration file.
    #[arg(long)]
    config: PathBuf,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// Carries the command out: 0, or 1 when something is broken.
pub fn run(command: &Doctor) -> Result<ExitCode, std::io::Error> {
    let mut report = Report::default();
    let path = command.config.display().to_string();
    match Config::load(&command.config) {
        Ok(config) => {
            report.add([Finding::ok("configuration", path, "can be used")]);
            examine(&config, &mut report);
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(hosts(&config, &mut report));
        }
        Err(error) => {
            report.add([Finding::fail(
                "configuration",
                path,
                error.to_string(),
                "correct it; examples/api.toml has every key",
            )]);
        }
    }
    report.add(clock::kept());
    Ok(report.end(command.json))
}

fn examine(config: &Config, report: &mut Report) {
    report.add(mtls::examine::mutual(&config.tls, "snapshot-api", Clock::system().now_s()));
    let keys = "make it by `snapshot-api token create-key`, or copy it from where the issuer is; correct [[issuers]]";
    report.add([match Verifier::load(config.issuers.clone()) {
        Ok(_) => Finding::ok("issuers", "", format!("the keys of {} can be read", config.issuers.len())),
        Err(error) => Finding::fail("issuers", "", error.to_string(), keys),
    }]);
    let own = &config.own_issuer;
    let subject = own.key.display().to_string();
    report.add([match Signer::load(&own.key, &own.kid, &own.name) {
        Ok(_) => Finding::ok("own issuer", subject, "its key can be read"),
        Err(error) => Finding::fail("own issuer", subject, error.to_string(), keys),
    }]);
    let database = &config.database.path;
    report.add(doctor::folder("catalogue's folder", database.parent().unwrap_or(Path::new("/"))));
    report.add([catalogue(database)]);
}

fn catalogue(path: &Path) -> Finding {
    let subject = path.display().to_string();
    match store::examine(path) {
        Ok(Some(seen)) => Finding::ok("catalogue", subject, seen),
        Ok(None) => Finding::warn(
            "catalogue",
            subject,
            "there is none yet",
            "start the service, which makes it and fills it from the hosts; or put a backup there first",
        ),
        // What it says says what to do.
        Err(error) => {
            Finding::fail("catalogue", subject, error.to_string(), "docs/operations/catalogue.md has the steps")
        }
    }
}

/// All hosts at once: one that is away takes seconds.
async fn hosts(config: &Config, report: &mut Report) {
    if config.hosts.is_empty() {
        let remedy = "name them in [[hosts]] of the configuration";
        report.add([Finding::warn("peer", "", "there are no hosts", remedy)]);
    }
    let asked = config.hosts.iter().map(|host| async move {
        mtls::examine::peer(&host.name.to_string(), &host.uri, &config.tls, &host.peer).await
    });
    for findings in futures_util::future::join_all(asked).await {
        report.add(findings);
    }
}
