//! The list of certificates that the CA has taken back: `crl.pem`. The list itself is the record: what stood in it stays.

use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{BACKDATE, DAY, DevCaError, issuer, read, since_epoch, write};

const CRL: &str = "crl.pem";
/// How long a list is said to be good. Its entries count beyond that; services warn.
const CRL_DAYS: u32 = 90;

/// An empty list, for a CA that is new.
pub(super) fn begin(dir: &Path) -> Result<(), DevCaError> {
    sign(dir, Vec::new(), CRL_DAYS)
}

/// Takes the certificate in a PEM file back, for good: another one for the same name is another matter.
pub fn revoke(dir: &Path, certificate: &Path) -> Result<(), DevCaError> {
    let invalid = |problem: &str| DevCaError::Invalid(format!("{}: {problem}", certificate.display()));
    let der = CertificateDer::from_pem_slice(read(certificate)?.as_bytes()).map_err(|_| invalid("no certificate"))?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| invalid("not a certificate"))?;
    let ca_pem = read(&dir.join(super::CA_CERTIFICATE))?;
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| invalid("the CA cannot be read"))?;
    let (_, ca) = X509Certificate::from_der(&ca).map_err(|_| invalid("the CA cannot be read"))?;
    if parsed.issuer().as_raw() != ca.subject().as_raw() {
        return Err(invalid("another CA made it"));
    }
    let serial = parsed.raw_serial().to_vec();
    let mut revoked = listed(dir)?;
    if revoked.iter().all(|(known, _)| *known != serial) {
        revoked.push((serial, since_epoch()?));
    }
    sign(dir, revoked, CRL_DAYS)
}

/// Makes the list anew, with what is in it, so that it is good for this long from now on.
pub fn refresh(dir: &Path, validity_days: u32) -> Result<(), DevCaError> {
    sign(dir, listed(dir)?, validity_days)
}

/// The serial numbers in the list and since when, or none where there is no list yet.
fn listed(dir: &Path) -> Result<Vec<(Vec<u8>, Duration)>, DevCaError> {
    let path = dir.join(CRL);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let invalid = || DevCaError::Invalid(format!("{} is not a revocation list", path.display()));
    let der = CertificateRevocationListDer::from_pem_slice(read(&path)?.as_bytes()).map_err(|_| invalid())?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|_| invalid())?;
    let entry = |revoked: &x509_parser::prelude::RevokedCertificate<'_>| {
        let since = u64::try_from(revoked.revocation_date.timestamp()).unwrap_or(0);
        (revoked.raw_serial().to_vec(), Duration::from_secs(since))
    };
    Ok(list.iter_revoked_certificates().map(entry).collect())
}

fn sign(dir: &Path, revoked: Vec<(Vec<u8>, Duration)>, validity_days: u32) -> Result<(), DevCaError> {
    let (now, epoch) = (since_epoch()?, rcgen::date_time_ymd(1970, 1, 1));
    let entry = |(serial, since): (Vec<u8>, Duration)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial),
        revocation_time: epoch + since,
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: epoch + now.saturating_sub(BACKDATE),
        next_update: epoch + (now + DAY * validity_days),
        crl_number: SerialNumber::from(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        issuing_distribution_point: None,
        revoked_certs: revoked.into_iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    write(&dir.join(CRL), &params.signed_by(&issuer(dir)?)?.pem()?, 0o644)
}
