//! A port that anybody may connect to: of the gateway, and of the API.
//!
//! A connection passes, in this order: a slot (`slots`: in all, by address, by proxy), the TLS handshake within its
//! time-out, and an IO wrapper (`guarded_io`) that ends it when no HTTP/2 preface or HTTP/1 head comes, when a block of
//! headers stays incomplete, or when its control frames exceed their budget (`frames`). hyper serves it from there. A
//! request body has a time-out (`received`). A connection without calls, one that has reached the maximum age, and
//! every connection when the service stops is asked to go: GOAWAY, or `connection: close` (`connection`).
//!
//! h2 0.4.20 limits these by itself: streams that are reset before they were accepted
//! (`max_pending_accept_reset_streams`, 20), stream errors (`max_local_error_reset_streams`, 1024), CONTINUATION frames
//! (by `max_header_list_size`), and small DATA frames that are buffered (`data_frame_budget`). It does not limit PING,
//! SETTINGS, WINDOW_UPDATE, PRIORITY, and RST_STREAM of streams that were accepted; the budget here does.
//!
//! A connection beyond a limit is answered, where a spare slot is left: the service finds [`Connection::over_limit`] in
//! the request's extensions, answers health checks, and refuses everything else.

#[cfg(fuzzing)]
pub mod fuzzing;

mod connection;
mod frames;
mod guarded_io;
mod network;
mod notices;
mod proxies;
mod received;
mod server;
mod settings;
mod slots;
mod unread;

pub use connection::Connection;
pub use network::{Network, NetworkError};
pub use notices::Limit;
pub use proxies::TrustedProxies;
pub use received::{ReceiveError, Received};
pub use server::serve;
pub use settings::Settings;

/// An error of a connection, as hyper reports it.
type BoxError = Box<dyn std::error::Error + Send + Sync>;
