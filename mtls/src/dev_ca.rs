//! A certificate authority for development and tests: P-256 keys, files in one folder.
//!
//! The folder has `ca.pem`, `ca.key`, `crl.pem` with what was revoked, and for each leaf `<stem>.pem` and `<stem>.key`. The CA's own URI SAN is its trust
//! domain (X509-SVID, section 3.2), so that a leaf added later needs no more than the folder. Keys are readable by their
//! owner only. A real deployment has a CA of its own and needs none of this.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::SpiffeId;
use crate::spiffe::is_trust_domain;

mod revocation;

pub use revocation::{refresh, revoke};

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const CA_DAYS: u32 = 3650;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Certificates begin this long before they are made: clocks differ.
const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// One certificate, good for both ends of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The files are `<stem>.pem` and `<stem>.key`.
    pub file_stem: String,
    /// The path of the SPIFFE id, without a leading slash: `agent/host-1`.
    pub spiffe_path: String,
    /// Host names for clients that go by those, such as grpcurl.
    pub dns: Vec<String>,
    /// Addresses, likewise.
    pub ip_addrs: Vec<IpAddr>,
}

/// What kept the CA from being made or used.
#[derive(Debug, thiserror::Error)]
pub enum DevCaError {
    /// The folder has a CA already, whose leaves would stop to work.
    #[error("{0} has a CA already")]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A trust domain, path, name or file that is not what it should be.
    #[error("{0}")]
    Invalid(String),
    /// The certificate cannot be made.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// Makes a CA and these leaves in `dir`, which is made too. A CA that is there is refused, unless `force`.
pub fn create(
    dir: &Path,
    trust_domain: &str,
    leaves: &[Leaf],
    validity_days: u32,
    force: bool,
) -> Result<(), DevCaError> {
    if !is_trust_domain(trust_domain) {
        return Err(DevCaError::Invalid(format!("{trust_domain:?} is not a trust domain")));
    }
    if !force && (dir.join(CA_CERTIFICATE).exists() || dir.join(CA_KEY).exists()) {
        return Err(DevCaError::Exists(dir.to_owned()));
    }
    fs::create_dir_all(dir).map_err(|source| DevCaError::Io { path: dir.to_owned(), source })?;

    // Two CAs of one trust domain differ in their names: what one has revoked must not be looked for with the other, and
    // while one replaces the other both are in use.
    let name = format!("Development CA of {trust_domain}, {:x}", since_epoch()?.as_millis());
    let mut params = params(&name, DAY * CA_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    write(&dir.join(CA_KEY), &key.serialize_pem(), 0o600)?;
    write(&dir.join(CA_CERTIFICATE), &certificate.pem(), 0o644)?;
    revocation::begin(dir)?;
    leaves.iter().try_for_each(|leaf| issue(dir, leaf, validity_days))
}

/// Makes one more leaf with the CA in `dir`. A leaf that is there is renewed: new key, new certificate.
pub fn issue(dir: &Path, leaf: &Leaf, validity_days: u32) -> Result<(), DevCaError> {
    issue_for(dir, leaf, DAY * validity_days)
}

/// As [`issue`], for any time.
pub fn issue_for(dir: &Path, leaf: &Leaf, validity: Duration) -> Result<(), DevCaError> {
    let stem = leaf.file_stem.as_str();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    if stem.is_empty() || stem == "ca" || stem.starts_with('.') || !stem.bytes().all(allowed) {
        return Err(DevCaError::Invalid(format!("{stem:?} is not a file stem")));
    }
    let ca_pem = read(&dir.join(CA_CERTIFICATE))?;
    let trust_domain = trust_domain(&ca_pem)?;
    let id: SpiffeId = format!("spiffe://{trust_domain}/{}", leaf.spiffe_path)
        .parse()
        .map_err(|error: crate::ParseSpiffeError| DevCaError::Invalid(error.to_string()))?;
    let issuer = issuer(dir)?;

    let mut params = params(&leaf.spiffe_path, validity)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![uri(id.as_str())?];
    for name in &leaf.dns {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.subject_alt_names.extend(leaf.ip_addrs.iter().map(|address| SanType::IpAddress(*address)));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, &issuer)?;
    write(&dir.join(format!("{stem}.key")), &key.serialize_pem(), 0o600)?;
    write(&dir.join(format!("{stem}.pem")), &certificate.pem(), 0o644)
}

/// Makes a leaf anew that is there: the same names, a new key, a new certificate.
pub fn renew(dir: &Path, file_stem: &str, validity_days: u32) -> Result<(), DevCaError> {
    let path = dir.join(format!("{file_stem}.pem"));
    issue(dir, &named(file_stem, &read(&path)?)?, validity_days)
}

/// Whom a certificate names.
fn named(file_stem: &str, pem: &str) -> Result<Leaf, DevCaError> {
    let invalid = || DevCaError::Invalid(format!("{file_stem}.pem is not a certificate made here"));
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| invalid())?;
    let identity = crate::PeerIdentity::from_certificate(&der).map_err(|_| invalid())?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| invalid())?;
    let names = certificate.subject_alternative_name().ok().flatten().ok_or_else(invalid)?;
    let (mut dns, mut ip_addrs) = (Vec::new(), Vec::new());
    for name in &names.value.general_names {
        match name {
            GeneralName::DNSName(name) => dns.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => ip_addrs.extend(address(bytes)),
            _ => {}
        }
    }
    Ok(Leaf { file_stem: file_stem.to_owned(), spiffe_path: identity.id().path().to_owned(), dns, ip_addrs })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn issuer(dir: &Path) -> Result<Issuer<'static, KeyPair>, DevCaError> {
    let key = KeyPair::from_pem(&read(&dir.join(CA_KEY))?)?;
    Ok(Issuer::from_ca_cert_pem(&read(&dir.join(CA_CERTIFICATE))?, key)?)
}

fn since_epoch() -> Result<Duration, DevCaError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_err(|_| DevCaError::Invalid("the clock is before 1970".to_owned()))
}

fn params(common_name: &str, validity: Duration) -> Result<CertificateParams, DevCaError> {
    let now = since_epoch()?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + (now + validity);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn uri(text: &str) -> Result<SanType, DevCaError> {
    Ok(SanType::URI(text.try_into()?))
}

fn trust_domain(ca_pem: &str) -> Result<String, DevCaError> {
    let invalid = || DevCaError::Invalid(format!("{CA_CERTIFICATE} is not a CA made here"));
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| invalid())?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| invalid())?;
    let names = certificate.subject_alternative_name().ok().flatten().ok_or_else(invalid)?;
    let domain = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
        _ => None,
    });
    domain.map(str::to_owned).ok_or_else(invalid)
}

fn read(path: &Path) -> Result<String, DevCaError> {
    fs::read_to_string(path).map_err(|source| DevCaError::Io { path: path.to_owned(), source })
}

/// In one step, because a service may be reading: to a draft that has its mode from the beginning, then renamed.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), DevCaError> {
    let draft = path.with_extension(format!("new.{}", std::process::id()));
    let replace = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    replace().map_err(|source| DevCaError::Io { path: path.to_owned(), source })
}
