//! `snapshot-gateway doctor`: what is wrong with the gateway on this machine, and what to do about it.
//!
//! It reads what the gateway reads, calls the API as the gateway does, and changes nothing.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use doctor::{Finding, Report, clock};

use crate::config::Config;

/// Examines and tells: 0, or 1 when something is broken.
pub async fn run(path: &Path, json: bool) -> ExitCode {
    let mut report = Report::default();
    let subject = path.display().to_string();
    match Config::load(path) {
        Ok(config) => {
            report.add([Finding::ok("configuration", subject, "can be used")]);
            examine(&config, &mut report).await;
        }
        Err(error) => {
            let remedy = "correct it; examples/gateway.toml has every key";
            report.add([Finding::fail("configuration", subject, error.to_string(), remedy)]);
        }
    }
    report.add(clock::kept());
    report.end(json)
}

async fn examine(config: &Config, report: &mut Report) {
    let now = unix_now();
    report.add(mtls::examine::mutual(&config.api.tls, "gateway", now));
    match &config.tls {
        Some(files) => report.add(mtls::examine::server(files, now)),
        None if !config.listen.ip().is_loopback() && config.trusted_proxies.is_empty() => {
            let seen = "callers connect in plain text, so their tokens can be read on the way";
            let remedy = "set [tls], or listen on this machine alone behind a proxy that does TLS";
            report.add([Finding::warn("listener", config.listen.to_string(), seen, remedy)]);
        }
        None => {}
    }
    report.add(mtls::examine::peer("snapshot-api", &config.api.uri, &config.api.tls, &config.api.peer).await);
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
