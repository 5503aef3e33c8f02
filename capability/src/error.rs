//! Why a token is refused, and why a key cannot be used. Neither ever quotes a token or a private key.

use std::io;
use std::path::PathBuf;

use snapshot_core::Reason;
use snapshot_core::authority::{AboveCeiling, Action};

/// Why a request's token is refused. The caller is not authenticated, whatever the variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The request carries no `authorization` header.
    #[error("the request carries no bearer token")]
    Missing,
    /// Several `authorization` headers: which one counts would depend on who reads them.
    #[error("the request carries several authorization headers")]
    Ambiguous,
    /// An `authorization` header that is not `Bearer <token>`.
    #[error("the authorization header is not a bearer token")]
    NotBearer,
    /// More than [`MAX_TOKEN_BYTES`](crate::MAX_TOKEN_BYTES).
    #[error("the token is too long")]
    TooLong,
    /// Not a JWT, or one whose header or claims are not of the expected form.
    #[error("the token is malformed")]
    Malformed,
    /// Signed with anything but EdDSA, or claiming to be.
    #[error("the token is not signed with EdDSA")]
    WrongAlgorithm,
    /// An `iss` that is not in the configuration.
    #[error("the token's issuer is not known")]
    UnknownIssuer,
    /// No `kid`, or one that is not in the key set of the token's issuer.
    #[error("the token's key is not one of its issuer's")]
    UnknownKey,
    /// The signature is not that of the key.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// A credential without a secret, with several, or with one that the token is not bound to.
    #[error("the credential is not a token followed by the secret that it is bound to")]
    Unconfirmed,
    /// A token without a usable `cnf` claim: it is bound to no secret.
    #[error("the token is bound to no secret: it has no confirmation claim")]
    Unbound,
    /// A credential with a secret where a token alone is expected: at an agent, which may not receive secrets.
    #[error("the credential has a secret, which is for the API alone")]
    UnexpectedSecret,
    /// An `aud` that is not this service.
    #[error("the token is for another audience")]
    WrongAudience,
    /// A `sub` or `jti` that is empty, too long, or has control characters.
    #[error("the token's subject or id is not acceptable")]
    BadIdentity,
    /// `exp` is not after `iat`, or more than [`MAX_LIFETIME_SECONDS`](crate::MAX_LIFETIME_SECONDS) after it.
    #[error("the token's lifetime is not acceptable")]
    BadLifetime,
    /// `iat` or `nbf` lies in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// It grants more than its issuer may.
    #[error("the token is above its issuer's ceiling: {0}")]
    AboveCeiling(AboveCeiling),
}

impl From<TokenError> for snapshot_core::Error {
    /// The refusal as a caller sees it; the finer reason stands in its metadata under `cause`.
    fn from(error: TokenError) -> Self {
        let reason = match error {
            TokenError::Missing => Reason::TokenMissing,
            TokenError::NotYetValid | TokenError::Expired => Reason::TokenExpired,
            TokenError::Ambiguous
            | TokenError::NotBearer
            | TokenError::TooLong
            | TokenError::Malformed
            | TokenError::WrongAlgorithm
            | TokenError::UnknownIssuer
            | TokenError::UnknownKey
            | TokenError::BadSignature
            | TokenError::Unconfirmed
            | TokenError::Unbound
            | TokenError::UnexpectedSecret
            | TokenError::WrongAudience
            | TokenError::BadIdentity
            | TokenError::BadLifetime
            | TokenError::AboveCeiling(_) => Reason::TokenInvalid,
        };
        Self::new(reason, error.to_string()).with("cause", error.reason())
    }
}

impl TokenError {
    /// The reason for machines, as in `google.rpc.ErrorInfo`.
    pub fn reason(&self) -> &'static str {
        match self {
            TokenError::Missing => "TOKEN_MISSING",
            TokenError::Ambiguous => "TOKEN_AMBIGUOUS",
            TokenError::NotBearer => "TOKEN_NOT_BEARER",
            TokenError::TooLong => "TOKEN_TOO_LONG",
            TokenError::Malformed => "TOKEN_MALFORMED",
            TokenError::WrongAlgorithm => "TOKEN_WRONG_ALGORITHM",
            TokenError::UnknownIssuer => "TOKEN_UNKNOWN_ISSUER",
            TokenError::UnknownKey => "TOKEN_UNKNOWN_KEY",
            TokenError::BadSignature => "TOKEN_BAD_SIGNATURE",
            TokenError::Unconfirmed => "TOKEN_UNCONFIRMED",
            TokenError::Unbound => "TOKEN_UNBOUND",
            TokenError::UnexpectedSecret => "TOKEN_UNEXPECTED_SECRET",
            TokenError::WrongAudience => "TOKEN_WRONG_AUDIENCE",
            TokenError::BadIdentity => "TOKEN_BAD_IDENTITY",
            TokenError::BadLifetime => "TOKEN_BAD_LIFETIME",
            TokenError::NotYetValid => "TOKEN_NOT_YET_VALID",
            TokenError::Expired => "TOKEN_EXPIRED",
            TokenError::AboveCeiling(_) => "TOKEN_ABOVE_CEILING",
        }
    }
}

/// Why a key, a key set or an issuer's entry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{path}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Two entries of the configuration for one issuer.
    #[error("issuer {0:?} is configured twice")]
    DuplicateIssuer(String),
    /// A right for the service's own issuer that is for users.
    #[error(
        "issuer {issuer:?} is the service's own and may not have {action}: read, create and delete are all there is for it"
    )]
    NotForService {
        /// The issuer.
        issuer: String,
        /// The right.
        action: Action,
    },
    /// A lifetime of less than a second or more than [`MAX_LIFETIME_SECONDS`](crate::MAX_LIFETIME_SECONDS).
    #[error("a token may live from 1 to {max} seconds, not {0}", max = crate::MAX_LIFETIME_SECONDS)]
    BadLifetime(i64),
    /// The cryptographic library refused, for a reason it does not give.
    #[error("the key cannot be made or used for signing")]
    Crypto,
}
