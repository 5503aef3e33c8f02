//! What can be wrong with the configuration of TLS. A handshake that fails is an `io::Error` of its connection.

use std::io;
use std::path::PathBuf;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The files are well-formed but do not go together, as with a key that is not the certificate's.
    #[error("the certificate, key and CA do not make a TLS configuration: {0}")]
    Mismatch(#[from] rustls::Error),
    /// The address of a peer is not of the form `https://host:port`.
    #[error("{uri:?} is not an address of the form https://host:port")]
    Uri {
        /// The address as given.
        uri: String,
    },
}
