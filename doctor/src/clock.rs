//! Clocks: this machine's against a peer's, and whether anything keeps this one right.
//!
//! A peer tells its time in whole seconds with every answer (`Date`, RFC 9110, section 6.6.1). What is told is by how much the
//! two must differ at least, whatever the way took.

use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::Finding;

/// Tokens are taken so many seconds before and after their time (`capability::CLOCK_SKEW_SECONDS`): beyond it every call is refused.
pub const REFUSED_SECONDS: u64 = 30;
/// Clocks that anything keeps are nearer than this.
const KEPT_SECONDS: u64 = 5;
/// The resolution of `Date`.
const RESOLUTION: Duration = Duration::from_secs(1);

/// Holds the `Date` of a peer's answer against this clock's time just before it was asked, and just after it had answered.
pub fn compare(peer: &str, date: Option<&str>, before: SystemTime, after: SystemTime) -> Finding {
    let told = date.and_then(|date| httpdate::parse_http_date(date).ok());
    let Some(told) = told else {
        return Finding::warn("clock", peer, "did not tell its time", "compare the clocks by hand");
    };
    let ahead = told.duration_since(after).unwrap_or_default().as_secs();
    let behind = before.duration_since(told + RESOLUTION).unwrap_or_default().as_secs();
    let (seconds, which) = if ahead > 0 { (ahead, "ahead of") } else { (behind, "behind") };
    let seen = format!("{seconds} s {which} this machine's");
    let remedy = format!(
        "set the clocks right: have chrony or systemd-timesyncd run on both machines; tokens are refused from {REFUSED_SECONDS} s on"
    );
    match seconds {
        0 => Finding::ok("clock", peer, "agrees with this machine's to a second"),
        _ if seconds > REFUSED_SECONDS => Finding::fail("clock", peer, seen, remedy),
        _ if seconds > KEPT_SECONDS => Finding::warn("clock", peer, seen, remedy),
        _ => Finding::ok("clock", peer, seen),
    }
}

/// Whether the kernel counts this machine's clock as kept right, by timedatectl; nothing where that cannot be asked.
pub fn kept() -> Option<Finding> {
    let output = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output().ok()?;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => Some(Finding::ok("time service", "", "keeps this machine's clock")),
        "no" => Some(Finding::warn(
            "time service",
            "",
            "nothing keeps this machine's clock",
            "install chrony or systemd-timesyncd, and let it reach a time server",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn only_what_cannot_be_the_way_or_the_rounding_counts() {
        let noon = httpdate::parse_http_date("Mon, 23 Nov 2026 12:00:00 GMT").unwrap();
        let of = |date: &str, from: i64, to: i64| {
            let at = |offset: i64| {
                let far = Duration::from_secs(offset.unsigned_abs());
                if offset < 0 { noon - far } else { noon + far }
            };
            compare("x", Some(date), at(from), at(to))
        };
        let told = "Mon, 23 Nov 2026 12:00:00 GMT";
        assert_eq!(of(told, -1, 4).level, Level::Ok, "within the call");
        assert_eq!(of(told, 1, 1).level, Level::Ok, "within the rounding");
        assert_eq!(of(told, 5, 5).level, Level::Ok);
        assert_eq!(of(told, 8, 9).level, Level::Warn);
        assert_eq!(of(told, 60, 61).level, Level::Fail);
        assert_eq!(of(told, -61, -60).level, Level::Fail);
        assert!(of(told, -61, -60).seen.contains("60 s ahead of"));
        assert_eq!(of("yesterday", 0, 0).level, Level::Warn);
        assert_eq!(compare("x", None, noon, noon).level, Level::Warn);
    }
}
