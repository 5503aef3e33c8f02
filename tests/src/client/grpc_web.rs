//! gRPC-Web as a browser speaks it: a POST over HTTP/1.1 with `application/grpc-web+proto`, framed here by hand, so that
//! the wire format itself is what is tested.

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::{Code, Status};

use super::{Call, Face, Refusal};

/// Set in a frame's first byte when it holds the trailers.
const TRAILERS: u8 = 0x80;
/// The flag and the length before each frame.
const PREFIX: usize = 5;

/// gRPC-Web through the gateway.
pub struct GrpcWeb {
    port: u16,
}

impl GrpcWeb {
    /// To the gateway.
    pub fn new(port: u16) -> Self {
        Self { port }
    }

    async fn exchange(&self, call: Call<'_>) -> Result<(HeaderMap, Bytes)> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::post(format!("/{}", call.path()))
            .header("host", format!("127.0.0.1:{}", self.port))
            .header("content-type", "application/grpc-web+proto")
            .header("accept", "application/grpc-web+proto")
            .header("x-grpc-web", "1");
        for (name, value) in call.headers() {
            request = request.header(name, value);
        }
        let response = sender.send_request(request.body(Full::new(Bytes::from(frame(0, call.request)?)))?).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        connection.await??;
        let kind = head.headers.get("content-type").map(HeaderValue::as_bytes).unwrap_or_default();
        if !head.status.is_success() || !kind.starts_with(b"application/grpc-web") {
            bail!("HTTP {} {:?}: {}", head.status, head.headers, String::from_utf8_lossy(&body));
        }
        Ok((head.headers, body))
    }
}

#[async_trait]
impl Face for GrpcWeb {
    fn name(&self) -> &'static str {
        "gRPC-Web"
    }

    async fn unary(&self, call: Call<'_>) -> Result<Vec<u8>, Refusal> {
        let mut messages = self.stream(call).await?;
        match (messages.pop(), messages.is_empty()) {
            (Some(message), true) => Ok(message),
            _ => Err(Refusal::harness("not one answer")),
        }
    }

    async fn stream(&self, call: Call<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
        let (headers, body) = self.exchange(call).await.map_err(|error| Refusal::harness(format!("{error:#}")))?;
        let (messages, trailers) = unframe(&body).map_err(|error| Refusal::harness(format!("{error:#}")))?;
        // A refusal before the first message may put its trailers into the headers.
        let status = Status::from_header_map(&trailers).or_else(|| Status::from_header_map(&headers));
        match status {
            Some(status) if status.code() == Code::Ok => Ok(messages),
            Some(status) => Err(status.into()),
            None => Err(Refusal::harness("the answer ended without a status")),
        }
    }
}

fn frame(flag: u8, message: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(message.len())?;
    Ok([&[flag], length.to_be_bytes().as_slice(), message].concat())
}

fn unframe(mut body: &[u8]) -> Result<(Vec<Vec<u8>>, HeaderMap)> {
    let (mut messages, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some((prefix, rest)) = body.split_first_chunk::<PREFIX>() {
        let [flag, length @ ..] = *prefix;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        let content = rest.get(..length).context("a frame is cut short")?;
        match flag {
            0 => messages.push(content.to_vec()),
            TRAILERS => trailers = headers(std::str::from_utf8(content)?)?,
            other => bail!("a frame with the flag {other:#x}"),
        }
        body = rest.get(length..).unwrap_or_default();
    }
    if !body.is_empty() {
        bail!("{} bytes after the last frame", body.len());
    }
    Ok((messages, trailers))
}

fn headers(text: &str) -> Result<HeaderMap> {
    let lines = text.split("\r\n").filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').with_context(|| format!("the trailer {line:?}"))?;
            Ok((name.trim().parse::<HeaderName>()?, value.trim().parse::<HeaderValue>()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{TRAILERS, frame, unframe};

    #[test]
    fn frames_are_read_back_and_cut_ones_refused() {
        let trailers = frame(TRAILERS, b"grpc-status:5\r\ngrpc-message:gone\r\n").unwrap();
        let body = [frame(0, b"one").unwrap(), frame(0, b"").unwrap(), trailers].concat();
        let (messages, trailers) = unframe(&body).unwrap();
        assert_eq!(messages, [b"one".to_vec(), Vec::new()]);
        assert_eq!(trailers["grpc-status"], "5");
        assert!(unframe(&body[..body.len() - 1]).is_err());
        assert!(unframe(&body[..6]).is_err());
    }
}
