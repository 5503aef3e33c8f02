//! Until when a service's own files are good: its certificate, the CAs and the revocation lists.
//!
//! Each file has a gauge, `snapshot_tls_not_after_timestamp_seconds`, with the earliest end in it. From fourteen days ahead
//! it is logged: when it is first seen and daily, as a warning, and as an error in the last day and after it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::files::Content;
use crate::reload::Reloader;
use crate::{ServerFiles, TlsError, TlsFiles};

const DAY: i64 = 24 * 60 * 60;
const AHEAD: i64 = 14 * DAY;
/// How often the files are looked at: the gauge shows a new certificate within this time.
const PERIOD: Duration = Duration::from_secs(5);

/// What kind of file it is, as the gauge's label `kind` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Our own certificate, with its intermediates.
    Certificate,
    /// The CAs of our peers.
    Ca,
    /// Revocation lists.
    Crl,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Ca => "ca",
            Self::Crl => "crl",
        }
    }
}

/// How near the end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nearness {
    /// More than fourteen days.
    Far,
    /// Less than that.
    Near,
    /// Less than a day.
    Imminent,
    /// It is over.
    Over,
}

/// How near an end is; both in seconds of the Unix epoch.
pub fn nearness(not_after: i64, now: i64) -> Nearness {
    match not_after - now {
        left if left <= 0 => Nearness::Over,
        left if left <= DAY => Nearness::Imminent,
        left if left <= AHEAD => Nearness::Near,
        _ => Nearness::Far,
    }
}

#[derive(Debug, Clone, Copy)]
struct Logged {
    end: i64,
    near: Nearness,
    at: i64,
}

/// Looks at one set of files.
#[derive(Debug)]
pub struct Expiry {
    kinds: Vec<(Kind, PathBuf)>,
    /// The earliest end in each file, in the same order.
    ends: Reloader<Vec<i64>>,
    /// Of each file, what was logged last.
    logged: Vec<Option<Logged>>,
}

impl Expiry {
    /// The files of a service that takes part in mutual TLS.
    pub fn of(files: &TlsFiles) -> Result<Self, TlsError> {
        let crl = files.crl.iter().map(|path| (Kind::Crl, path.clone()));
        Self::new([(Kind::Certificate, files.certificate.clone()), (Kind::Ca, files.ca.clone())].into_iter().chain(crl))
    }

    /// The files of a server that asks for no client certificate.
    pub fn of_server(files: &ServerFiles) -> Result<Self, TlsError> {
        Self::new([(Kind::Certificate, files.certificate.clone())])
    }

    fn new(files: impl IntoIterator<Item = (Kind, PathBuf)>) -> Result<Self, TlsError> {
        let kinds: Vec<_> = files.into_iter().collect();
        let paths = kinds.iter().map(|(_, path)| path.clone()).collect();
        let order: Vec<Kind> = kinds.iter().map(|(kind, _)| *kind).collect();
        let ends = Reloader::new(paths, move |contents| {
            order.iter().zip(contents).map(|(kind, content)| earliest(*kind, content)).collect()
        })?;
        let logged = vec![None; kinds.len()];
        Ok(Self { kinds, ends, logged })
    }

    /// Looks for as long as the service runs. `now` is the wall clock, in seconds of the Unix epoch.
    pub async fn watch(mut self, now: impl Fn() -> i64 + Send) {
        loop {
            self.look(now());
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Sets the gauges, logs what is due, and returns that.
    pub fn look(&mut self, now: i64) -> Vec<(Kind, Nearness)> {
        let ends = self.ends.current();
        let mut told = Vec::new();
        for (((kind, path), end), logged) in self.kinds.iter().zip(ends.iter()).zip(&mut self.logged) {
            let file = path.display().to_string();
            let labels = [("kind", kind.label().to_owned()), ("file", file.clone())];
            // Seconds of the epoch are far below where a float loses whole numbers.
            metrics::gauge!("snapshot_tls_not_after_timestamp_seconds", &labels).set(*end as f64);
            let near = nearness(*end, now);
            let same = |last: &Logged| (last.end, last.near) == (*end, near) && (0..DAY).contains(&(now - last.at));
            let due = near != Nearness::Far && !logged.as_ref().is_some_and(same);
            if !due {
                continue;
            }
            *logged = Some(Logged { end: *end, near, at: now });
            let (kind_name, days) = (kind.label(), (end - now).div_euclid(DAY));
            match near {
                Nearness::Far => {}
                Nearness::Near => tracing::warn!(kind = kind_name, file, days, "expires soon: replace it"),
                Nearness::Imminent => tracing::error!(kind = kind_name, file, "expires within a day: replace it"),
                Nearness::Over => tracing::error!(kind = kind_name, file, days, "has expired"),
            }
            told.push((*kind, near));
        }
        told
    }
}

/// Describes the gauge to whoever collects metrics.
pub fn describe() {
    let text = "When the earliest certificate or revocation list in a file ends, by kind and file.";
    metrics::describe_gauge!("snapshot_tls_not_after_timestamp_seconds", metrics::Unit::Seconds, text);
}

fn earliest(kind: Kind, content: &Content<'_>) -> Result<i64, TlsError> {
    let ends: Option<Vec<i64>> = match kind {
        Kind::Certificate | Kind::Ca => content.certificates()?.iter().map(not_after).collect(),
        Kind::Crl => content.crls()?.iter().map(|crl| next_update(crl)).collect(),
    };
    let ends = ends.ok_or_else(|| content.invalid("its end cannot be read"))?;
    ends.into_iter().min().ok_or_else(|| content.invalid("nothing in it"))
}

pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// A list without an end is good for ever.
pub(crate) fn next_update(crl: &[u8]) -> Option<i64> {
    let (_, crl) = CertificateRevocationList::from_der(crl).ok()?;
    Some(crl.next_update().map_or(i64::from(u32::MAX), |next| next.timestamp()))
}

/// How long a certificate is good from now on.
pub(crate) fn time_left(certificate: &CertificateDer<'_>) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let end = Duration::from_secs(u64::try_from(not_after(certificate)?).unwrap_or(0));
    Some(end.saturating_sub(now))
}
