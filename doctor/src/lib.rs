//! What `doctor` finds and says: a list of findings, each with what was seen and what to do about it.
//!
//! Each service examines the machine that it runs on, because only there its files are; what they share is here: the shape
//! of a report, folders and their space ([`folder`], [`space`]), and clocks ([`clock`]). Certificates are `mtls`'s.

pub mod clock;
mod folders;

use std::io::Write as _;
use std::process::ExitCode;

pub use folders::{folder, readable_folder, space};
use serde::Serialize;

/// How bad a finding is. Later ones are worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and will not for long or not in every case.
    Warn,
    /// Something does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, such as `certificate` or `image folder`; stable.
    pub check: &'static str,
    /// Which one: a path, a host, an address; empty where there is but one.
    pub subject: String,
    /// How bad it is.
    pub level: Level,
    /// What was seen.
    pub seen: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, subject: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { check, subject: subject.into(), level: Level::Ok, seen: seen.into(), remedy: String::new() }
    }

    /// To be looked after.
    pub fn warn(
        check: &'static str,
        subject: impl Into<String>,
        seen: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warn, remedy: remedy.into(), ..Self::ok(check, subject, seen) }
    }

    /// Broken.
    pub fn fail(
        check: &'static str,
        subject: impl Into<String>,
        seen: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Fail, remedy: remedy.into(), ..Self::ok(check, subject, seen) }
    }
}

/// Everything that was looked at, in that order.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One a thing.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Adds what was found.
    pub fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
    }

    /// The worst of all.
    pub fn level(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    /// For a person: a line a finding, and its remedy below it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let level = match finding.level {
                Level::Ok => "ok  ",
                Level::Warn => "WARN",
                Level::Fail => "FAIL",
            };
            let which = [finding.check, &finding.subject].join(" ");
            text += &format!("{level}  {}: {}\n", clean(which.trim()), clean(&finding.seen));
            if !finding.remedy.is_empty() {
                text += &format!("      -> {}\n", clean(&finding.remedy));
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let (good, doubtful, bad) = (count(Level::Ok), count(Level::Warn), count(Level::Fail));
        text + &format!("{good} as they should be, {doubtful} to be looked after, {bad} broken\n")
    }

    /// For a program.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Told<'a> {
            level: Level,
            findings: &'a [Finding],
        }
        let told = Told { level: self.level(), findings: &self.findings };
        serde_json::to_string(&told).unwrap_or_default()
    }

    /// Prints it and says whether anything is broken: 0 or 1. What is merely to be looked after is no failure.
    pub fn end(&self, json: bool) -> ExitCode {
        let text = if json { format!("{}\n", self.json()) } else { self.text() };
        // Who closed the other end has seen what they wanted.
        let _ = std::io::stdout().write_all(text.as_bytes());
        if self.level() == Level::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Without what a terminal would obey.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts_and_each_has_its_remedy_below_it() {
        let mut report = Report::default();
        assert_eq!(report.level(), Level::Ok);
        report.add([Finding::ok("configuration", "/x", "read"), Finding::warn("space", "/y", "12 %", "make space")]);
        assert_eq!(report.level(), Level::Warn);
        report.add([Finding::fail("libvirt", "", "no\nanswer", "start it")]);
        assert_eq!(report.level(), Level::Fail);
        let text = report.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1..3], ["WARN  space /y: 12 %", "      -> make space"]);
        assert_eq!(
            (lines[3], lines[5]),
            ("FAIL  libvirt: no\u{fffd}answer", "1 as they should be, 1 to be looked after, 1 broken")
        );
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["level"], &json["findings"][1]["remedy"]), (&"FAIL".into(), &"make space".into()));
    }
}
