//! Bearer tokens: Ed25519-signed JWTs that carry grants, each bound to a secret.
//!
//! - [`Verifier`] turns a token into a [`Caller`](snapshot_core::authority::Caller), by the public keys and the ceiling
//!   of its issuer. The API and every agent hold one of their own: neither takes the other's word.
//! - [`Credential`] is what a caller sends to the API: a token and its secret. Agents are sent the token alone.
//! - [`Signer`] mints tokens: for operators, for tests, and for what the API does on its own.
//! - [`bearer`] finds the credential in a request.
//!
//! What a caller may then do is decided in [`snapshot_core::authority`]. The clock is an argument throughout.

mod bearer;
mod credential;
mod error;
mod jwks;
mod keygen;
mod signer;
mod verifier;

pub use bearer::bearer;
pub use credential::{Credential, SEPARATOR};
pub use error::{KeyError, TokenError};
pub use keygen::generate_issuer_key;
pub use signer::Signer;
pub use verifier::{IssuerConfig, Verifier};

/// The longest a token may live, in seconds. A stolen one is of use for no longer than this.
pub const MAX_LIFETIME_SECONDS: i64 = 15 * 60;

/// How far the clocks of issuer and verifier may be apart, in seconds.
pub const CLOCK_SKEW_SECONDS: i64 = 30;

/// The most bytes a credential may have, its secret included: room for about a hundred grants, and less than a header's worth of memory to whoever
/// sends rubbish.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
