//! What the program does besides serving: keys and certificates for a set-up that has no PKI of its own.

pub mod audit;
pub mod backup;
pub mod doctor;
pub mod pki;
pub mod token;
