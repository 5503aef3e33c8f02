//! `application/grpc-web-text`: gRPC-Web in base64, as browsers' older clients send it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};

use crate::errors::Refusal;

const TEXT: &str = "application/grpc-web-text";
const BINARY: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");

/// The content type of an answer in text.
pub(crate) const TEXT_PROTO: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");

/// Turns the head of a request in text to one in binary, and says whether it was in text.
pub(crate) fn take(headers: &mut HeaderMap) -> bool {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.strip_prefix(TEXT).is_some_and(|rest| matches!(rest.split(';').next(), Some("" | "+proto")))
    });
    if text {
        headers.insert(CONTENT_TYPE, BINARY);
    }
    text
}

/// The binary body of a request. A client may encode it in pieces, each with its own padding.
pub(crate) fn decode(body: &[u8]) -> Result<Bytes, Refusal> {
    let mut out = Vec::with_capacity(body.len() / 4 * 3);
    let mut rest = body;
    while !rest.is_empty() {
        // A piece ends with the group of four that holds its padding.
        let end = rest.iter().position(|byte| *byte == b'=').map_or(rest.len(), |pad| rest.len().min(pad / 4 * 4 + 4));
        let (piece, after) = rest.split_at(end);
        STANDARD
            .decode_vec(piece, &mut out)
            .map_err(|error| Refusal::Malformed(format!("the body is no base64: {error}")))?;
        rest = after;
    }
    Ok(out.into())
}

/// A body whose every frame of data is encoded by itself.
pub(crate) struct Encoded<B>(pub(crate) B);

impl<B: Body<Data = Bytes> + Unpin> Body for Encoded<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| STANDARD.encode(data).into()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_with_padding_of_their_own_are_one_body() {
        assert_eq!(&decode(b"YQ==Yg==Y2Rl").expect("base64")[..], b"abcde");
        assert_eq!(&decode(b"").expect("nothing")[..], b"");
        for bad in [&b"YQ="[..], b"====", b"Y", b"Y=Q="] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_text_is_taken() {
        for (kind, text) in
            [(TEXT, true), ("application/grpc-web-text+proto; x=y", true), ("application/grpc-web", false)]
        {
            let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(take(&mut headers), text, "{kind}");
        }
    }
}
