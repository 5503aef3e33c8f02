//! What can be wrong with a service's certificates, said one by one: for a doctor, who looks once and starts nothing.
//!
//! Serving asks the same questions and stops at the first answer; here each has its own, with what to do about it.

mod peer;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use doctor::Finding;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::sign::CertifiedKey;
use webpki::{CertRevocationList, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder, UnknownStatusPolicy};
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use peer::peer;

use crate::expiry::{Nearness, nearness, next_update, not_after};
use crate::files::Content;
use crate::verify::provider;
use crate::{PeerIdentity, ServerFiles, TlsError, TlsFiles};

const DAY: i64 = 24 * 60 * 60;
const CERTIFICATE: &str = "certificate";
const RENEW: &str = "replace it: `snapshot-api pki renew --dir CA_FOLDER --name NAME`, or by your own authority; services \
                     read it again by themselves";

/// The files of a service that takes part in mutual TLS. `path` is what is usual at the end of its SPIFFE id, such as
/// `agent/alpha`; `now` is in seconds of the Unix epoch.
pub fn mutual(files: &TlsFiles, path: &str, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let chain = certificate(&files.certificate, &files.key, now, &mut findings);
    let cas = read(&files.ca, |it| it.certificates(), &mut findings);
    let crls = files.crl.as_deref().and_then(|crl| read(crl, |it| it.crls(), &mut findings));
    findings.extend(cas.iter().flatten().map(|ca| dates("CA", &files.ca, ca, now)));
    if let Some(chain) = chain.as_deref() {
        findings.push(identity(&files.certificate, chain, path));
        if let Some(cas) = &cas {
            findings.push(signed(files, chain, cas, crls.as_deref().unwrap_or_default(), now));
        }
    }
    findings.extend(crls.iter().flatten().filter_map(|crl| list(files.crl.as_deref()?, crl, now)));
    findings
}

/// The files of a server that asks for no client certificate.
pub fn server(files: &ServerFiles, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    certificate(&files.certificate, &files.key, now, &mut findings);
    findings
}

/// What a file holds, or the finding that it cannot be used.
fn read<T>(path: &Path, parse: fn(&Content<'_>) -> Result<T, TlsError>, findings: &mut Vec<Finding>) -> Option<T> {
    let content = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(crate::reload::MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let parsed = match content {
        Ok(bytes) => parse(&Content { path, bytes: &bytes }).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    parsed
        .map_err(|why| {
            let remedy = "put the file there, readable by the user that the service runs as, or correct [tls]";
            findings.push(Finding::fail(CERTIFICATE, shown(path), format!("cannot be used: {why}"), remedy));
        })
        .ok()
}

/// Its dates, and whether the key is its own and kept to itself.
fn certificate(path: &Path, key: &Path, now: i64, findings: &mut Vec<Finding>) -> Option<Vec<CertificateDer<'static>>> {
    let chain = read(path, |it| it.certificates(), findings);
    let private = read(key, |it| it.private_key(), findings);
    findings.extend(chain.iter().flatten().map(|certificate| dates(CERTIFICATE, path, certificate, now)));
    if let (Some(chain), Some(private)) = (&chain, private) {
        let matching = CertifiedKey::from_der(chain.clone(), private, &provider());
        findings.push(match matching {
            Ok(_) => Finding::ok("key", shown(key), "is the certificate's"),
            Err(error) => Finding::fail(
                "key",
                shown(key),
                format!("is not the certificate's: {error}"),
                "copy certificate and key from the same place, or issue both anew",
            ),
        });
    }
    if let Ok(mode) = std::fs::metadata(key).map(|metadata| metadata.permissions().mode() & 0o7777)
        && mode & 0o007 != 0
    {
        let remedy =
            "chmod it to 0600 (or 0640 with the service's group); if others were on this machine, issue it anew";
        findings.push(Finding::fail("key", shown(key), format!("everybody may read it (mode {mode:04o})"), remedy));
    }
    chain
}

fn dates(check: &'static str, path: &Path, certificate: &CertificateDer<'_>, now: i64) -> Finding {
    let begin = X509Certificate::from_der(certificate).map(|(_, it)| it.validity().not_before.timestamp());
    let (Ok(begin), Some(end)) = (begin, not_after(certificate)) else {
        return Finding::fail(check, shown(path), "its dates cannot be read", RENEW);
    };
    if begin > now {
        let remedy = "compare this machine's clock with the authority's: one of them is wrong";
        return Finding::fail(check, shown(path), format!("is good only in {} days", days(begin - now)), remedy);
    }
    ends(check, path, end, now)
}

fn ends(check: &'static str, path: &Path, end: i64, now: i64) -> Finding {
    let days = days(end - now);
    match nearness(end, now) {
        Nearness::Over => Finding::fail(check, shown(path), format!("has expired, {} days ago", -days), RENEW),
        Nearness::Far => Finding::ok(check, shown(path), format!("good for {days} days")),
        Nearness::Near | Nearness::Imminent => {
            Finding::warn(check, shown(path), format!("expires in {days} days"), RENEW)
        }
    }
}

fn days(seconds: i64) -> i64 {
    seconds.div_euclid(DAY)
}

/// A revocation list. One whose time is over goes on to count (ADR 20), so it is no failure.
fn list(path: &Path, crl: &CertificateRevocationListDer<'_>, now: i64) -> Option<Finding> {
    let end = next_update(crl)?;
    let finding = ends("revocation list", path, end, now);
    let remedy = "make it anew, `snapshot-api pki crl --dir CA_FOLDER`, and copy it to every machine";
    Some(match nearness(end, now) {
        Nearness::Far => finding,
        _ => Finding::warn("revocation list", shown(path), finding.seen, remedy),
    })
}

fn identity(path: &Path, chain: &[CertificateDer<'_>], usual: &str) -> Finding {
    let Some(leaf) = chain.first() else {
        return Finding::fail("identity", shown(path), "there is no certificate", RENEW);
    };
    let remedy = format!(
        "issue it with one: `snapshot-api pki issue --dir CA_FOLDER --name NAME --spiffe-path {usual}`; or name what it has in \
         the peers' configuration (`peers`, `peer`)"
    );
    match PeerIdentity::from_certificate(leaf) {
        Ok(found) if found.id().path() == usual => Finding::ok("identity", shown(path), found.id().as_str()),
        Ok(found) => {
            let seen = format!("is {}, and peers usually expect one that ends in /{usual}", found.id());
            Finding::warn("identity", shown(path), seen, remedy)
        }
        Err(error) => Finding::fail("identity", shown(path), format!("has no SPIFFE id: {error}"), remedy),
    }
}

/// Whether our own CA signed it, for both sides of a connection, and has not taken it back. Dates are told of separately, so
/// this looks at a moment at which they are good.
fn signed(
    files: &TlsFiles,
    chain: &[CertificateDer<'_>],
    cas: &[CertificateDer<'static>],
    crls: &[CertificateRevocationListDer<'static>],
    now: i64,
) -> Finding {
    let subject = shown(&files.certificate);
    let ca = files.ca.display();
    let refused = |error: webpki::Error| match error {
        webpki::Error::CertRevoked => ("has been revoked".to_owned(), "issue a new one, with a new key".to_owned()),
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => (
            format!("is signed by none of the CAs in {ca}"),
            format!(
                "put the CA's certificate into {ca}, on every machine, or have the certificate issued by one that is there"
            ),
        ),
        other => (format!("is not accepted: {other}"), "issue it anew".to_owned()),
    };
    match verify(chain, cas, crls, now) {
        Ok(()) => Finding::ok("chain", subject, format!("signed by a CA in {ca}")),
        Err(error) => {
            let (seen, remedy) = refused(error);
            Finding::fail("chain", subject, seen, remedy)
        }
    }
}

fn verify(
    chain: &[CertificateDer<'_>],
    cas: &[CertificateDer<'static>],
    crls: &[CertificateRevocationListDer<'static>],
    now: i64,
) -> Result<(), webpki::Error> {
    let [leaf, intermediates @ ..] = chain else { return Err(webpki::Error::UnknownIssuer) };
    let anchors = cas.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
    let last = chain.iter().filter_map(|it| not_after(it)).min().unwrap_or(now).saturating_sub(1).min(now);
    let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(last).unwrap_or(0)));
    let crls = crls.iter().map(|crl| OwnedCertRevocationList::from_der(crl).map(CertRevocationList::from));
    let crls = crls.collect::<Result<Vec<_>, _>>()?;
    let crls: Vec<&CertRevocationList<'_>> = crls.iter().collect();
    let leaf = webpki::EndEntityCert::try_from(leaf)?;
    let provider = provider();
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        let revocation = RevocationOptionsBuilder::new(&crls).ok();
        let revocation = revocation.map(|options| options.with_status_policy(UnknownStatusPolicy::Allow).build());
        let algorithms = provider.signature_verification_algorithms.all;
        leaf.verify_for_usage(algorithms, &anchors, intermediates, time, usage, revocation, None)?;
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests;
