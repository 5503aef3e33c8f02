//! `doctor`: from here to the machines, as far as this token sees.
//!
//! Each check needs those before it: settings, the connection, the token, then the hosts where the token is an
//! administrator's. The service's clock is told by the date of an answer, whichever it is.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doctor::{Finding, Report, clock};
use proto::v1;
use serde::Deserialize;
use tonic::Code;
use tonic::metadata::MetadataMap;

use super::all_hosts;
use crate::advice::advice;
use crate::arguments::Common;
use crate::connection::{self, Service};
use crate::failure::Failure;
use crate::out::Out;
use crate::settings::{Settings, Token};
use crate::show;

/// Less than this of a host's file system is to be looked after.
const LOW_PERCENT: i64 = 10;

pub(super) async fn run(common: &Common, out: &Out) -> Result<ExitCode, Failure> {
    let mut report = Report::default();
    match Settings::gather(common) {
        Ok(settings) => {
            report.add([Finding::ok("settings", "", "can be used")]);
            report.add(life(&settings.token));
            connected(&settings, &mut report).await;
        }
        Err(failure) => report.add([broken("settings", "", &failure, "see `snapctl --help`")]),
    }
    Ok(report.end(out.is_json()))
}

async fn connected(settings: &Settings, report: &mut Report) {
    let endpoint = settings.endpoint.as_str();
    match connection::open(settings).await {
        Err(failure) => {
            let remedy =
                "look at the address and the port ([listen] public of the API), at --ca, and at firewalls between";
            report.add([broken("service", endpoint, &failure, remedy)]);
        }
        Ok(service) => {
            report.add([Finding::ok("service", endpoint, "can be reached")]);
            if called(&service, endpoint, report).await {
                hosts(&service, report).await;
            }
        }
    }
}

/// Whether the token is taken, and what the service's clock says.
async fn called(service: &Service, endpoint: &str, report: &mut Report) -> bool {
    let before = SystemTime::now();
    let answer = service.snapshots.clone().list_vms(v1::ListVmsRequest { page_size: 1, ..Default::default() }).await;
    let after = SystemTime::now();
    let date = |metadata: &MetadataMap| metadata.get("date").and_then(|it| it.to_str().ok()).map(str::to_owned);
    let (date, finding, good) = match answer {
        Ok(answer) => (date(answer.metadata()), Finding::ok("token", "", "is taken"), true),
        Err(status) => {
            let date = date(status.metadata());
            (date, broken("token", "", &Failure::from(status), "get a new one"), false)
        }
    };
    report.add([clock::compare(endpoint, date.as_deref(), before, after), finding]);
    good
}

/// Where the token is an administrator's, the hosts: whether they answer, and their space.
async fn hosts(service: &Service, report: &mut Report) {
    match all_hosts(service).await {
        Err(Failure::Status(status)) if status.code() == Code::PermissionDenied => {}
        Err(failure) => report.add([broken("hosts", "", &failure, "look at the service's log")]),
        Ok(all) => all.hosts.iter().for_each(|host| report.add(host_findings(host))),
    }
}

fn host_findings(host: &v1::Host) -> Vec<Finding> {
    let name = host.name.as_str();
    if !host.reachable {
        let remedy = "run `snapshot-api doctor` where the API is, and `snapshot-agent doctor` on the host";
        let seen = format!("cannot be reached: {}", host.unreachable_reason);
        return vec![Finding::fail("host", name, seen, remedy)];
    }
    let seen = format!(
        "agent {}, libvirt {}, QEMU {}, {} machines",
        host.agent_version, host.libvirt_version, host.qemu_version, host.vm_count
    );
    let low = host.file_systems.iter().filter(|it| it.free_bytes / LOW_PERCENT < it.total_bytes / 100);
    let low = low.map(|it| {
        let seen = format!("{} free of {}", show::size(it.free_bytes), show::size(it.total_bytes));
        Finding::warn("space", format!("{name} {}", it.path), seen, "make space there, or enlarge it")
    });
    std::iter::once(Finding::ok("host", name, seen)).chain(low).collect()
}

/// A failure, with the advice of docs/errors.md where it has a reason.
fn broken(check: &'static str, subject: &str, failure: &Failure, remedy: &str) -> Finding {
    let reason = failure.reason();
    let remedy = reason.as_deref().and_then(advice).unwrap_or(remedy);
    let seen = reason.as_ref().map_or_else(|| failure.to_string(), |reason| format!("{reason}: {failure}"));
    Finding::fail(check, subject, seen, remedy)
}

/// How long the token says that it lives, and whether its secret is there. Nobody verifies it here: that is the service's, which
/// has the keys.
fn life(token: &Token) -> Option<Finding> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let remedy = "get a new one: from Ravada, or by `snapshot-api token mint`";
    let payload = token.0.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let Some(claims) = payload.and_then(|json| serde_json::from_slice::<Claims>(&json).ok()) else {
        return Some(Finding::fail("token's life", "", "it is no token of this kind", remedy));
    };
    if !token.0.contains('~') {
        let seen = "its secret, from ~ on, is missing: the service takes no token without it";
        return Some(Finding::fail("token's life", "", seen, "copy the whole token, or get a new one"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let left = claims.exp - i64::try_from(now.as_secs()).ok()?;
    Some(if left <= 0 {
        Finding::fail("token's life", "", format!("ended {} s ago, by this machine's clock", -left), remedy)
    } else {
        Finding::ok("token's life", "", format!("{left} s left, by this machine's clock"))
    })
}

#[cfg(test)]
mod tests {
    use ::doctor::Level;

    use super::*;

    #[test]
    fn a_token_that_has_ended_is_told_of() {
        let of = |claims: &str| life(&Token(format!("e30.{}.x~y", URL_SAFE_NO_PAD.encode(claims)))).unwrap().level;
        assert_eq!((of(r#"{"exp":1}"#), of(r#"{"exp":9000000000}"#), of("{}")), (Level::Fail, Level::Ok, Level::Fail));
        let without_secret = Token(format!("e30.{}.x", URL_SAFE_NO_PAD.encode(r#"{"exp":9000000000}"#)));
        assert_eq!(life(&without_secret).unwrap().level, Level::Fail);
        assert_eq!(life(&Token("x".to_owned())).unwrap().level, Level::Fail);
    }

    #[test]
    fn a_host_is_told_of_with_its_space() {
        let file_system = |free_bytes| v1::FileSystem { path: "/srv".to_owned(), free_bytes, total_bytes: 1 << 40 };
        let file_systems = vec![file_system(1 << 39), file_system(1 << 36)];
        let host = v1::Host { name: "hosts/alpha".to_owned(), reachable: true, file_systems, ..Default::default() };
        let levels: Vec<Level> = host_findings(&host).iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Ok, Level::Warn]);
        assert_eq!(host_findings(&v1::Host::default())[0].level, Level::Fail);
    }
}
