//! Whether a trail is as it was written.
//!
//! Each row is hashed anew and held against its own hash, the hash of the row before and its number. A trail begins with the
//! event `begun`, or with the row after those that a later event `pruned` names by number and hash. That is all that can be told
//! from the file alone: who can write it can cut off its end or write all of it anew, which only a head that was noted elsewhere
//! shows.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, Row};
use snapshot_core::audit::{Hash, Head, Link, Outcome};

use super::super::schema::open_reader;
use super::hash;

/// A trail that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The first event that is kept.
    pub first: i64,
    /// The last one: what is to be noted elsewhere.
    pub head: Head,
}

/// Where a trail is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {sequence}: {what}")]
pub struct Broken {
    /// The first event that is wrong, or that is missing.
    pub sequence: i64,
    /// What is wrong.
    pub what: String,
}

/// Why it cannot be said that a trail is whole.
#[derive(Debug, thiserror::Error)]
pub enum Unverified {
    /// It is not.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The noted head is older than what is kept.
    #[error(
        "event {noted} was removed as the configuration says, the first that is kept is {first}: take a newer one that was noted"
    )]
    TooOld {
        /// The noted one.
        noted: i64,
        /// The first one that is kept.
        first: i64,
    },
    /// The file cannot be read, or has no trail.
    #[error("{path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

/// Verifies the trail of a catalogue or of a copy of one, while the service runs or not; and that it goes on from a head that was
/// noted elsewhere.
pub fn verify(path: &Path, noted: Option<&Head>) -> Result<Verified, Unverified> {
    let unreadable = |cause: String| Unverified::Unreadable { path: path.to_owned(), cause };
    let connection = open_reader(path).map_err(|error| unreadable(error.to_string()))?;
    let known = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'audit'";
    let known: i64 =
        connection.query_row(known, [], |row| row.get(0)).map_err(|error| unreadable(error.to_string()))?;
    if known == 0 {
        return Err(unreadable("it is no catalogue with an audit trail".to_owned()));
    }
    // One state of it, however long this takes.
    let transaction = connection.unchecked_transaction().map_err(|error| unreadable(error.to_string()))?;
    walk(&transaction, 0, noted).map_err(|failure| failure.at(path))
}

/// Verifies the last events, so that a service that starts says when its trail was changed meanwhile.
pub(in crate::store) fn check_end(connection: &Connection, count: i64) -> Result<(), Unverified> {
    let sql = "SELECT max(coalesce(max(seq), 0) - ?1, 0) FROM audit";
    let from = connection.query_row(sql, [count], |row| row.get(0)).map_err(Failure::Sqlite);
    from.and_then(|from| walk(connection, from, None))
        .map(|_| ())
        .map_err(|failure| failure.at(Path::new("the catalogue")))
}

enum Failure {
    Sqlite(rusqlite::Error),
    Unverified(Unverified),
}

impl Failure {
    fn at(self, path: &Path) -> Unverified {
        match self {
            Self::Sqlite(error) => Unverified::Unreadable { path: path.to_owned(), cause: error.to_string() },
            Self::Unverified(unverified) => unverified,
        }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn broken(sequence: i64, what: impl Into<String>) -> Failure {
    Failure::Unverified(Broken { sequence, what: what.into() }.into())
}

/// Walks the rows after one; of the whole trail (`from` 0) the beginning is held to what it must be.
fn walk(connection: &Connection, from: i64, noted: Option<&Head>) -> Result<Verified, Failure> {
    let sql = "SELECT seq, version, time_ms, served_ms, count, issuer, subject, token_id, peer, method, request_id, vm, snapshot, \
               operation, outcome, reason, detail, previous, hash FROM audit WHERE seq > ?1 ORDER BY seq";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([from])?;
    let mut first: Option<Head> = None;
    let mut end: Option<Head> = None;
    let mut vouched = false;
    while let Some(row) = rows.next()? {
        let sequence: i64 = row.get(0)?;
        let (link, told) = read(row).map_err(|error| broken(sequence, format!("it cannot be read: {error}")))?;
        check(&link, told, end.as_ref())?;
        let outcome = link.texts[9].as_str();
        let before = first.get_or_insert_with(|| Head { sequence: sequence - 1, hash: link.previous });
        vouched |= outcome == Outcome::Pruned.as_str() && link.texts[11] == before.to_string();
        vouched |= sequence == 1 && outcome == Outcome::Begun.as_str() && link.previous == [0; 32];
        end = Some(Head { sequence, hash: told });
        if noted.is_some_and(|noted| noted.sequence == sequence && noted.hash != told) {
            return Err(broken(sequence, "it is not the one that was noted: it and what follows were written anew"));
        }
    }
    let (Some(before), Some(head)) = (first, end) else {
        return Err(broken(from + 1, "there is none: the trail was emptied"));
    };
    if from == 0 && !vouched {
        return Err(broken(
            before.sequence.max(1),
            "what was before the first event is missing, and no event says that it was removed",
        ));
    }
    match noted {
        Some(noted) if noted.sequence > head.sequence => {
            let what = format!("it was noted, and the trail ends with event {}: the end was cut off", head.sequence);
            Err(broken(head.sequence + 1, what))
        }
        Some(noted) if noted.sequence == before.sequence && noted.hash != before.hash => {
            Err(broken(before.sequence + 1, "it does not follow the one that was noted"))
        }
        Some(noted) if noted.sequence < before.sequence => {
            let (noted, first) = (noted.sequence, before.sequence + 1);
            Err(Failure::Unverified(Unverified::TooOld { noted, first }))
        }
        _ => Ok(Verified { first: before.sequence + 1, head }),
    }
}

fn check(link: &Link, told: Hash, end: Option<&Head>) -> Result<(), Failure> {
    let sequence = link.sequence;
    if let Some(end) = end {
        if sequence != end.sequence + 1 {
            return Err(broken(
                end.sequence + 1,
                format!("it is missing: event {sequence} follows event {}", end.sequence),
            ));
        }
        if link.previous != end.hash {
            return Err(broken(sequence, "it does not have the hash of the event before"));
        }
    }
    let Some(expected) = hash(link) else {
        return Err(broken(sequence, format!("its version {} is not known here", link.version)));
    };
    if expected != told {
        return Err(broken(sequence, "its hash is not that of its content"));
    }
    Ok(())
}

fn read(row: &Row<'_>) -> Result<(Link, Hash), rusqlite::Error> {
    let mut texts: [String; 12] = Default::default();
    for (column, text) in (5..).zip(&mut texts) {
        *text = row.get(column)?;
    }
    let link = Link {
        sequence: row.get(0)?,
        version: row.get(1)?,
        time_ms: row.get(2)?,
        served_ms: row.get(3)?,
        count: row.get(4)?,
        texts,
        previous: row.get(17)?,
    };
    Ok((link, row.get(18)?))
}
