//! The public listener: the services behind a public port (`public_port`), for callers with TLS and a token.
//!
//! A request passes, in this order: the port (slots, time-outs, control frames), the deadline of its caller, the rates of
//! its address (`limits/stranger.rs`), and the services, which are those of the internal listener.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use mtls::ServerFiles;
use mtls::server::{Acceptor, ServerTls};
use proto::status::ERROR_DOMAIN;
use public_port::{ReceiveError, Received};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::util::{BoxCloneSyncService, MapResponseLayer};
use tower::{Layer as _, ServiceExt as _};

use crate::config::Config;
use crate::limits::{Limits, Strangers};
use crate::service::too_large;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Listens, and serves until `stopping` is cancelled and then until calls have ended, for at most `drain`.
///
/// # Errors
/// When the address cannot be listened on, or the certificates cannot be used.
pub async fn listen(
    address: SocketAddr,
    config: &Config,
    routes: Routes,
    limits: Arc<Limits>,
    drain: Duration,
    stopping: CancellationToken,
) -> Result<JoinHandle<()>, BoxError> {
    let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
    let files = ServerFiles { certificate: config.tls.certificate.clone(), key: config.tls.key.clone() };
    let acceptor = Acceptor::new(ServerTls::ServerOnly { files, http1: false })?;
    let settings = config.limits.port(&config.trusted_proxies, drain);
    let service = service(routes, Strangers::new(limits));
    Ok(tokio::spawn(public_port::serve(listener, Some(acceptor), settings, service, stopping)))
}

fn service(routes: Routes, strangers: Strangers) -> BoxCloneSyncService<Request<Received>, Response<Body>, Infallible> {
    let services = strangers.layer(MapResponseLayer::new(too_large::typed).layer(routes.prepare()));
    let answer = move |request: Request<Received>| {
        let services = services.clone();
        async move {
            let deadline = deadline(request.headers());
            let answer = services.oneshot(request.map(|body| Body::new(Typed(body))));
            match deadline {
                None => answer.await,
                Some(limit) => tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Ok(late().into_http())),
            }
        }
    };
    BoxCloneSyncService::new(tower::service_fn(answer))
}

/// The time that the caller gives the call: `grpc-timeout`, at most eight digits and a unit. One that cannot be read
/// is no deadline.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 60 * 60),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

fn late() -> Status {
    typed(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the call was not answered in time".to_owned())
}

fn typed(code: Code, reason: &str, message: String) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new()))
}

/// A request body whose time-out is a status, as tonic passes it on to the caller.
struct Typed(Received);

impl http_body::Body for Typed {
    type Data = <Received as http_body::Body>::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, BoxError>>> {
        let frame = std::pin::Pin::new(&mut self.0).poll_frame(cx);
        frame.map_err(|error| match error {
            ReceiveError::TimedOut(_) => typed(Code::DeadlineExceeded, "REQUEST_TIMEOUT", error.to_string()).into(),
            ReceiveError::Failed(error) => error.into(),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_has_at_most_eight_digits_and_a_unit() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            deadline(&headers)
        };
        assert_eq!(of("3S"), Some(Duration::from_secs(3)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!((of("250m"), of("7u")), (Some(Duration::from_millis(250)), Some(Duration::from_micros(7))));
        for text in ["", "S", "3", "3s", "123456789S", "-3S", "3\u{e4}"] {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(deadline(&HeaderMap::new()), None);
    }
}
