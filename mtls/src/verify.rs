//! The two verifiers: chain first, by webpki, then the identity in the leaf.
//!
//! Both run within the handshake, so a peer that is refused never gets to speak HTTP/2. They run again as long as the
//! connection lives (see `guard.rs`).
//!
//! Revocation lists tell what is refused, and no more than that: a CA without a list has revoked nothing, and a list whose
//! time is over goes on to count (ADR 20). One that its CA did not sign lets nobody of that CA in.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use webpki::{CertRevocationList, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder, UnknownStatusPolicy};

use crate::{AllowList, IdentityError, PeerIdentity, SpiffeId};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// The one crypto provider, named where it is used: a process-wide default could be another's.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

fn refused(error: IdentityError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Admits clients that our CA signed and that are on the list.
#[derive(Debug)]
pub(crate) struct AllowedClients {
    chain: Arc<dyn ClientCertVerifier>,
    allow: AllowList,
}

impl AllowedClients {
    pub(crate) fn new(
        roots: RootCertStore,
        crls: Vec<CertificateRevocationListDer<'static>>,
        allow: AllowList,
    ) -> Result<Self, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .with_crls(crls)
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { chain, allow })
    }
}

impl ClientCertVerifier for AllowedClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let peer = PeerIdentity::from_certificate(leaf).map_err(refused)?;
        if self.allow.admits(&peer) { Ok(verified) } else { Err(refused(IdentityError::NotAllowed(peer.id().clone()))) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Accepts the one server that was meant, under whatever host name or address it was reached.
#[derive(Debug)]
pub(crate) struct ExpectedServer {
    roots: RootCertStore,
    crls: Vec<CertRevocationList<'static>>,
    expected: SpiffeId,
}

impl ExpectedServer {
    pub(crate) fn new(
        roots: RootCertStore,
        crls: Vec<CertificateRevocationListDer<'static>>,
        expected: SpiffeId,
    ) -> Result<Self, Error> {
        let crls = crls.iter().map(|crl| OwnedCertRevocationList::from_der(crl).map(CertRevocationList::from));
        let crls =
            crls.collect::<Result<_, _>>().map_err(|error| Error::General(format!("revocation list: {error}")))?;
        Ok(Self { roots, crls, expected })
    }

    /// Whether any certificate of a chain, which has been verified, is on a list.
    fn check_revoked(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        let Ok(options) = RevocationOptionsBuilder::new(&crls) else { return Ok(()) };
        let options = options.with_status_policy(UnknownStatusPolicy::Allow).build();
        let bad = |error| match error {
            webpki::Error::CertRevoked => Error::InvalidCertificate(CertificateError::Revoked),
            other => Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(other)))),
        };
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(bad)?;
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        let (roots, usage) = (&self.roots.roots, KeyUsage::server_auth());
        leaf.verify_for_usage(algorithms, roots, intermediates, now, usage, Some(options), None).map_err(bad)?;
        Ok(())
    }
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        self.check_revoked(leaf, intermediates, now)?;
        let peer = PeerIdentity::from_certificate(leaf).map_err(refused)?;
        if *peer.id() == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            let expected = self.expected.clone();
            Err(refused(IdentityError::NotExpected { found: peer.id().clone(), expected }))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}
