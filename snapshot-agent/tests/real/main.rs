//! The agent on real guests.

mod adapter;
mod agent;
mod guest;
mod service;
