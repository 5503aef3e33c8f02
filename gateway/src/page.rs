//! The page: files that are part of the program, served from memory.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tonic::body::Body;

use crate::config;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors ";
/// Smaller files do not get smaller.
const GZIP_FROM: usize = 512;
const HASH_LENGTH: usize = 8;

#[derive(rust_embed::Embed)]
#[folder = "web/dist"]
#[allow_missing = true]
struct Dist;

/// The files by path, and the headers that all of them get.
pub(crate) struct Page {
    files: HashMap<String, File>,
    policy: HeaderValue,
    framed: bool,
}

struct File {
    plain: Bytes,
    gzip: Option<Bytes>,
    kind: HeaderValue,
    etag: HeaderValue,
    cache: HeaderValue,
}

impl Page {
    pub(crate) fn new(config: &config::Page) -> Self {
        Self::with_files(
            config,
            Dist::iter().filter_map(|path| Some((path.to_string(), load(&path, &Dist::get(&path)?)))),
        )
    }

    fn with_files(config: &config::Page, files: impl Iterator<Item = (String, File)>) -> Self {
        let framed = !config.frame_ancestors.is_empty();
        let ancestors = if framed { config.frame_ancestors.join(" ") } else { "'none'".to_owned() };
        // The configuration has been checked to hold nothing but origins; without it nobody may frame the page.
        let policy = HeaderValue::try_from(format!("{POLICY}{ancestors}"))
            .unwrap_or(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
        Self { files: files.collect(), policy, framed }
    }

    /// The answer to a request for a file.
    pub(crate) fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
        let name = if path == "/" { "index.html" } else { path.trim_start_matches('/') };
        let mut response = match self.files.get(name) {
            Some(file) if unchanged(headers, &file.etag) => file.head(StatusCode::NOT_MODIFIED),
            Some(file) => file.whole(method, headers),
            None => missing(name, method),
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        if !self.framed {
            headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        }
        response
    }
}

impl File {
    fn head(&self, status: StatusCode) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(ETAG, self.etag.clone());
        headers.insert(CACHE_CONTROL, self.cache.clone());
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        response
    }

    fn whole(&self, method: &Method, headers: &HeaderMap) -> Response<Body> {
        let mut response = self.head(StatusCode::OK);
        response.headers_mut().insert(CONTENT_TYPE, self.kind.clone());
        let mut body = &self.plain;
        if let Some(gzip) = self.gzip.as_ref().filter(|_| accepts_gzip(headers)) {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            body = gzip;
        }
        if method == Method::HEAD {
            response.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        } else {
            *response.body_mut() = Body::new(http_body_util::Full::new(body.clone()));
        }
        response
    }
}

fn load(path: &str, file: &rust_embed::EmbeddedFile) -> File {
    let mut etag = String::from("\"");
    for byte in file.metadata.sha256_hash().iter().take(16) {
        // Writing to a string does not fail.
        let _ = write!(etag, "{byte:02x}");
    }
    etag.push('"');
    let kind = match file.metadata.mimetype() {
        text if text.starts_with("text/") => format!("{text}; charset=utf-8"),
        other => other.to_owned(),
    };
    // A name that holds the hash of the content never gets another content.
    let cache = if is_hashed(path) { "public, max-age=31536000, immutable" } else { "no-cache" };
    File {
        plain: Bytes::from(file.data.to_vec()),
        gzip: compress(&file.data),
        kind: HeaderValue::try_from(kind).unwrap_or(HeaderValue::from_static("application/octet-stream")),
        etag: HeaderValue::try_from(etag).unwrap_or(HeaderValue::from_static("\"\"")),
        cache: HeaderValue::from_static(cache),
    }
}

/// Whether a name ends in a hash as esbuild writes it, such as `app-QK5TN3ZV.js`.
fn is_hashed(path: &str) -> bool {
    let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
    stem.rsplit_once('-').is_some_and(|(_, hash)| {
        hash.len() == HASH_LENGTH && hash.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    })
}

fn compress(data: &[u8]) -> Option<Bytes> {
    if data.len() < GZIP_FROM {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).ok()?;
    encoder.finish().ok().filter(|small| small.len() < data.len()).map(Bytes::from)
}

fn unchanged(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    known
        .split(',')
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag.as_bytes() == etag.as_bytes())
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim() == "gzip" && !matches!(quality.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")
    })
}

fn missing(name: &str, method: &Method) -> Response<Body> {
    let text = if name == "index.html" { "This gateway was built without the page.\n" } else { "Not found.\n" };
    let mut response = Response::new(Body::empty());
    if method != Method::HEAD {
        *response.body_mut() = Body::new(http_body_util::Full::new(Bytes::from_static(text.as_bytes())));
    }
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn page(ancestors: &[&str]) -> Page {
        let config = config::Page { frame_ancestors: ancestors.iter().map(|a| (*a).to_owned()).collect() };
        let embedded = |name: &str, data: &'static [u8], mime: &'static str| {
            let metadata = rust_embed::Metadata::__rust_embed_new([7; 32], None, None, mime);
            let file = load(name, &rust_embed::EmbeddedFile { data: Cow::Borrowed(data), metadata });
            (name.to_owned(), file)
        };
        let files =
            [embedded("index.html", &[b'a'; 2000], "text/html"), embedded("app-QK5TN3ZV.js", b"1", "text/javascript")];
        Page::with_files(&config, files.into_iter())
    }

    fn headers(name: http::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_page_may_run_only_what_comes_with_it() {
        let response = page(&[]).answer(&Method::GET, "/", &HeaderMap::new());
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers();
        assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(headers[CACHE_CONTROL], "no-cache");
        assert_eq!(headers[X_FRAME_OPTIONS], "DENY");
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[REFERRER_POLICY], "no-referrer");
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().expect("text");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(policy.ends_with("frame-ancestors 'none'"), "{policy}");
    }

    #[test]
    fn only_named_origins_may_frame_it() {
        let response = page(&["https://ravada.example.org"]).answer(&Method::GET, "/", &HeaderMap::new());
        let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().expect("text");
        assert!(policy.ends_with("frame-ancestors https://ravada.example.org"), "{policy}");
        assert!(!response.headers().contains_key(X_FRAME_OPTIONS));
    }

    #[test]
    fn what_the_browser_has_is_not_sent_again() {
        let page = page(&[]);
        let first = page.answer(&Method::GET, "/app-QK5TN3ZV.js", &HeaderMap::new());
        assert_eq!(first.headers()[CACHE_CONTROL], "public, max-age=31536000, immutable");
        let etag = first.headers()[ETAG].to_str().expect("text").to_owned();
        let known = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::try_from(etag).expect("a value"))]);
        assert_eq!(page.answer(&Method::GET, "/app-QK5TN3ZV.js", &known).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(page.answer(&Method::GET, "/../Cargo.toml", &HeaderMap::new()).status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn it_is_compressed_for_those_who_can_read_it() {
        let page = page(&[]);
        let gzip = page.answer(&Method::GET, "/", &headers(ACCEPT_ENCODING, "br, gzip;q=0.8"));
        assert_eq!(gzip.headers()[CONTENT_ENCODING], "gzip");
        let plain = page.answer(&Method::GET, "/", &headers(ACCEPT_ENCODING, "gzip;q=0"));
        assert!(!plain.headers().contains_key(CONTENT_ENCODING));
    }
}
