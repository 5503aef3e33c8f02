//! A peer, as a doctor meets it: whether it can be reached, who it is, and what its clock says.

use std::error::Error;
use std::time::{Duration, SystemTime};

use doctor::{Finding, clock};
use http::{Request, header};
use rustls::{CertificateError, OtherError};
use tonic::body::Body;
use tower::ServiceExt as _;

use crate::client::{ClientTimeouts, channel};
use crate::{SpiffeId, TlsFiles};

const ANSWER: Duration = Duration::from_secs(10);
/// gRPC's frame of an empty message: what health is asked with.
const EMPTY: &str = "\0\0\0\0\0";
const PEER: &str = "peer";

/// Asks the health service of the server `expected` at `uri`. Must be called inside a tokio runtime.
pub async fn peer(name: &str, uri: &str, files: &TlsFiles, expected: &SpiffeId) -> Vec<Finding> {
    let channel = match channel(uri, files.clone(), expected.clone(), ClientTimeouts::default()) {
        Ok(channel) => channel,
        Err(error) => {
            let remedy = "put the certificates right, and the address (https://HOST:PORT)";
            return vec![Finding::fail(PEER, name, format!("cannot be called: {error}"), remedy)];
        }
    };
    let request = Request::post("/grpc.health.v1.Health/Check")
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Body::new(EMPTY.to_owned()));
    let Ok(request) = request else {
        return vec![Finding::fail(PEER, name, "cannot be asked", "correct its address")];
    };
    let before = SystemTime::now();
    let answer = tokio::time::timeout(ANSWER, channel.oneshot(request)).await;
    let after = SystemTime::now();
    match answer {
        Err(late) => vec![failed(name, uri, expected, &late)],
        Ok(Err(error)) => vec![failed(name, uri, expected, &error)],
        Ok(Ok(answer)) => {
            let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
            vec![
                Finding::ok(PEER, name, format!("{expected} answers at {uri}")),
                clock::compare(name, date, before, after),
            ]
        }
    }
}

/// What is to be done follows from what TLS did not like; anything else is the way there.
fn failed(name: &str, uri: &str, expected: &SpiffeId, error: &(dyn Error + 'static)) -> Finding {
    let below = innermost(error);
    let nowhere = "start it there; look at the address, the port it listens on, and firewalls between".to_owned();
    let (why, remedy) = match below.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(fault)) => not_accepted(fault, expected),
        Some(rustls::Error::AlertReceived(alert)) => (
            format!("it refused our certificate ({alert:?})"),
            "have it admit us: our SPIFFE id among its `peers`, our CA in its [tls] ca, our certificate not revoked and not \
             expired; its log says which"
                .to_owned(),
        ),
        _ => (below.to_string(), nowhere),
    };
    Finding::fail(PEER, name, format!("does not answer at {uri}: {why}"), remedy)
}

fn not_accepted(fault: &CertificateError, expected: &SpiffeId) -> (String, String) {
    match fault {
        CertificateError::Other(OtherError(identity)) => (
            identity.to_string(),
            format!(
                "issue its certificate with {expected} (`snapshot-api pki issue --spiffe-path {}`), or correct `peer` here",
                expected.path()
            ),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "its certificate has expired, by this machine's clock".to_owned(),
            "replace it (`snapshot-api pki renew`), or set the clocks right".to_owned(),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("its certificate is not good yet, by this machine's clock".to_owned(), "set the clocks right".to_owned())
        }
        CertificateError::UnknownIssuer => (
            "its certificate is signed by none of our CAs".to_owned(),
            "give both machines the same CA certificates ([tls] ca)".to_owned(),
        ),
        CertificateError::Revoked => {
            ("its certificate has been revoked".to_owned(), "issue it a new one, with a new key".to_owned())
        }
        other => (other.to_string(), "issue its certificate anew".to_owned()),
    }
}

/// The error that says most: tonic says "transport error" at the top.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut last = error;
    loop {
        if last.is::<rustls::Error>() {
            return last;
        }
        // An error inside an io::Error is no source of it, but what it shows.
        let inner = last.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| last.source()) {
            Some(below) => last = below,
            None => return last,
        }
    }
}
