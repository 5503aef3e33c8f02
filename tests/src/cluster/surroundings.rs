//! What a test may put between the processes of a cluster, and below their folders, before they start.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::ALL_ACTIONS;
use crate::tools;

/// A way from one process to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the gateway to the API.
    ToApi,
    /// From the API to an agent.
    ToAgent,
}

/// Told of each folder before anything is in it, and asked for each port that a process is told to call. What a test does not
/// say is as it is without it.
pub trait Surroundings {
    /// An agent's folder, which is empty.
    fn journal(&mut self, _folder: &Path) -> Result<()> {
        Ok(())
    }

    /// The folder of the API's database, which is empty.
    fn catalogue(&mut self, _folder: &Path) -> Result<()> {
        Ok(())
    }

    /// The port to call in order to get to `port`.
    fn way(&mut self, _way: Way, port: u16) -> Result<u16> {
        Ok(port)
    }

    /// What the processes log, as RUST_LOG. What the test was told to log would be for the test.
    fn level(&self) -> String {
        std::env::var("SERVER_LOG").unwrap_or_else(|_| "info".to_owned())
    }

    /// The port of the collector that every process is told of; none by default.
    fn collector(&self) -> Option<u16> {
        None
    }

    /// What the issuer of users may grant: earlier services start with no action that they do not know.
    fn actions(&self) -> &'static [&'static str] {
        &ALL_ACTIONS
    }

    /// The program of a process: that of this build, unless a test is about another one.
    fn program(&self, name: &str) -> Result<PathBuf> {
        tools::binary(name)
    }
}

/// Nothing of the kind.
#[derive(Debug)]
pub struct Plain;

impl Surroundings for Plain {}
