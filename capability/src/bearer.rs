//! The credential of a request.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::TokenError;

/// The credential in `authorization: Bearer <credential>`: at the API a token with its secret, at an agent a token alone. Exactly one such header must be there. With tonic:
/// `bearer(request.metadata().as_ref())`.
pub fn bearer(headers: &HeaderMap) -> Result<&str, TokenError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(TokenError::Missing)?;
    if values.next().is_some() {
        return Err(TokenError::Ambiguous);
    }
    let text = value.to_str().map_err(|_| TokenError::NotBearer)?;
    let (scheme, token) = text.split_once(' ').ok_or(TokenError::NotBearer)?;
    let token = token.trim_matches(' ');
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains([' ', ',']) {
        Ok(token)
    } else {
        Err(TokenError::NotBearer)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn one_bearer_header_is_read() {
        assert_eq!(bearer(&headers(&["Bearer a.b.c~d"])), Ok("a.b.c~d"));
        for value in ["Bearer abc.def", "bearer abc.def", "BEARER  abc.def "] {
            assert_eq!(bearer(&headers(&[value])), Ok("abc.def"), "{value}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(bearer(&headers(&[])), Err(TokenError::Missing));
        assert_eq!(bearer(&headers(&["Bearer a", "Bearer a"])), Err(TokenError::Ambiguous));
        for value in ["", "Bearer", "Bearer ", "Basic abc", "Bearer a b", "Bearer a, Bearer b", "abc.def"] {
            assert_eq!(bearer(&headers(&[value])), Err(TokenError::NotBearer), "{value}");
        }
    }
}
