//! PEM files, and what is in them.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use serde::Deserialize;

use crate::TlsError;

/// The files of a service that takes part in mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificates of the CAs that peers are signed by: one, or several while they are replaced.
    pub ca: PathBuf,
    /// Our certificate, with intermediates after it if there are any.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CAs' lists of certificates that count no longer (CRLs), one after the other; none when absent.
    #[serde(default)]
    pub crl: Option<PathBuf>,
}

impl TlsFiles {
    /// The files in the order in which their contents are taken: certificate, key, CA, and the CRLs where there are any.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        [&self.certificate, &self.key, &self.ca].into_iter().chain(&self.crl).cloned().collect()
    }
}

/// The files of a server that asks for no client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerFiles {
    /// Our certificate, with intermediates after it if there are any.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The content of one file of a set, with its name for what there is to say about it.
pub(crate) struct Content<'a> {
    pub(crate) path: &'a Path,
    pub(crate) bytes: &'a [u8],
}

impl Content<'_> {
    /// The certificates in the file, at least one.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(self.bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| self.invalid(format!("not PEM: {error}")))?;
        if certificates.is_empty() { Err(self.invalid("no certificate in it")) } else { Ok(certificates) }
    }

    /// The certificates in the file as trust anchors.
    pub(crate) fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.invalid(format!("not a CA certificate: {error}")))?;
        }
        Ok(roots)
    }

    /// The revocation lists in the file, at least one.
    pub(crate) fn crls(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let crls: Vec<_> = CertificateRevocationListDer::pem_slice_iter(self.bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| self.invalid(format!("not PEM: {error}")))?;
        if crls.is_empty() { Err(self.invalid("no revocation list in it")) } else { Ok(crls) }
    }

    /// The private key in the file. Errors say nothing of its content.
    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.bytes).map_err(|_| self.invalid("no private key in it"))
    }

    pub(crate) fn invalid(&self, problem: impl Into<String>) -> TlsError {
        TlsError::Invalid { path: self.path.to_owned(), problem: problem.into() }
    }
}
