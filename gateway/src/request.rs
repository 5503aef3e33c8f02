//! What of a request is checked before connectrpc sees it.
//!
//! connectrpc refuses what it cannot read, too, and without a reason. So the head and the frame of every request are read here
//! first, and what it gets is what it can read: a POST of a content type that fits the method, with one token at most, and one
//! message that is not compressed. Compressed ones are unpacked here, within the limit for requests.

use std::io::Read as _;

use bytes::{BufMut as _, Bytes, BytesMut};
use connectrpc::{MethodKind, Protocol};
use flate2::read::MultiGzDecoder;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::errors::Refusal;

const CONNECT_ENCODING: HeaderName = HeaderName::from_static("connect-content-encoding");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const CONNECT_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");
/// The flags and the length before a message of gRPC, gRPC-Web and Connect's streams.
const FRAME: usize = 5;
const COMPRESSED: u8 = 1;

/// How the message of a request is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Form {
    /// Whether it is in a frame.
    framed: bool,
    /// The header that says how it is compressed.
    encoding: HeaderName,
    /// Whether it is, or in a frame may be.
    gzip: bool,
}

/// Reads the head of a request for a method of this kind.
pub(crate) fn form(parts: &Parts, kind: MethodKind) -> Result<Form, Refusal> {
    if parts.method != Method::POST {
        return Err(Refusal::HttpMethod(parts.method.clone()));
    }
    let headers = &parts.headers;
    if headers.get_all(AUTHORIZATION).iter().count() > 1 {
        return Err(Refusal::Tokens);
    }
    let kind_of_content = || {
        let told = single(headers, &CONTENT_TYPE).ok().flatten().unwrap_or_default();
        Refusal::ContentType(told.to_owned())
    };
    let content = single(headers, &CONTENT_TYPE)?.and_then(Protocol::detect_from_content_type);
    let content = content.filter(|it| !it.is_text_mode).ok_or_else(kind_of_content)?;
    let (encoding, other) = match content.protocol {
        Protocol::Connect if content.is_streaming => (CONNECT_ENCODING, Some(CONTENT_ENCODING)),
        Protocol::Connect => (CONTENT_ENCODING, None),
        _ => (GRPC_ENCODING, Some(CONTENT_ENCODING)),
    };
    if content.protocol == Protocol::Connect {
        if content.is_streaming != (kind != MethodKind::Unary) {
            return Err(kind_of_content());
        }
        if let Some(version) = single(headers, &CONNECT_VERSION)?.filter(|version| *version != "1") {
            return Err(Refusal::Malformed(format!("version {version} of Connect is not known here")));
        }
    }
    if let Some(other) = other.filter(|other| gzip(headers, other) != Ok(false)) {
        let told = headers.get(&other).and_then(|value| value.to_str().ok()).unwrap_or_default();
        return Err(Refusal::Encoding { header: other, told: told.to_owned() });
    }
    Ok(Form { framed: content.is_streaming, gzip: gzip(headers, &encoding)?, encoding })
}

impl Form {
    /// The body as connectrpc gets it, and the head that fits: one message of at most `limit` bytes, not compressed.
    pub(crate) fn unpack(&self, headers: &mut HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, Refusal> {
        headers.remove(CONTENT_LENGTH);
        headers.remove(&self.encoding);
        if !self.framed {
            return if self.gzip && !body.is_empty() { gunzip(&body, limit) } else { Ok(body) };
        }
        let malformed = |why: &str| Refusal::Malformed(why.to_owned());
        let (head, message) = body.split_at_checked(FRAME).ok_or_else(|| malformed("there is no message in it"))?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > limit {
            return Err(Refusal::TooLarge { limit });
        }
        if message.len() != length {
            return Err(malformed("it is not one message of the length that it tells"));
        }
        match head[0] {
            0 => Ok(body),
            COMPRESSED if self.gzip => {
                let message = gunzip(message, limit)?;
                let mut framed = BytesMut::with_capacity(FRAME + message.len());
                framed.put_u8(0);
                framed.put_u32(u32::try_from(message.len()).map_err(|_| Refusal::TooLarge { limit })?);
                framed.put_slice(&message);
                Ok(framed.freeze())
            }
            COMPRESSED => Err(malformed("it is compressed, and no header says how")),
            _ => Err(malformed("its frame has flags that are not known here")),
        }
    }
}

/// The head by which an error is answered: in the protocol of the request, also where its message is of a form that is not known.
pub(crate) fn answerable(headers: &HeaderMap) -> HeaderMap {
    let told = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let known = match told {
        _ if Protocol::detect_from_content_type(told).is_some() => told,
        _ if told.starts_with("application/grpc-web") => "application/grpc-web",
        _ if told.starts_with("application/grpc") => "application/grpc",
        _ => "application/json",
    };
    let mut headers = headers.clone();
    headers.insert(CONTENT_TYPE, HeaderValue::from_str(known).unwrap_or(HeaderValue::from_static("application/json")));
    headers
}

/// A header that may be there once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match (value.to_str(), values.next()) {
        (Ok(text), None) => Ok(Some(text)),
        _ => Err(Refusal::Malformed(format!("the header {name} is there twice, or is no text"))),
    }
}

/// Whether a header says that something is compressed by gzip; nothing else is known here.
fn gzip(headers: &HeaderMap, name: &HeaderName) -> Result<bool, Refusal> {
    match single(headers, name)? {
        None | Some("" | "identity") => Ok(false),
        Some("gzip") => Ok(true),
        Some(other) => Err(Refusal::Encoding { header: name.clone(), told: other.to_owned() }),
    }
}

fn gunzip(packed: &[u8], limit: usize) -> Result<Bytes, Refusal> {
    let mut message = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    MultiGzDecoder::new(packed)
        .take(most)
        .read_to_end(&mut message)
        .map_err(|error| Refusal::Malformed(format!("it is no gzip: {error}")))?;
    if message.len() > limit { Err(Refusal::TooLarge { limit }) } else { Ok(message.into()) }
}
