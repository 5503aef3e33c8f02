//! The real `grpcurl`, which learns the API by reflection (v1alpha) at every call.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use serde_json::{Deserializer, Value};
use tokio::process::Command;

use super::connect::feed;
use super::{Call, Face, Refusal, json};
use crate::tools::tool;

/// grpcurl at a port.
pub struct Grpcurl {
    name: &'static str,
    program: PathBuf,
    options: Vec<String>,
    address: String,
}

impl Grpcurl {
    /// At the gateway, without TLS.
    pub fn plain(port: u16) -> Result<Self> {
        Self::at("grpcurl through the gateway", port, vec!["-plaintext".to_owned()])
    }

    /// At the API's public port, trusting `ca` alone.
    pub fn tls(port: u16, ca: &Path) -> Result<Self> {
        Self::at("grpcurl to the API", port, vec!["-cacert".to_owned(), ca.display().to_string()])
    }

    fn at(name: &'static str, port: u16, options: Vec<String>) -> Result<Self> {
        Ok(Self { name, program: tool("grpcurl")?, options, address: format!("127.0.0.1:{port}") })
    }

    async fn answers_or_error(&self, call: &Call<'_>) -> Result<Result<Vec<Vec<u8>>, Refusal>> {
        let mut command = Command::new(&self.program);
        command.args(&self.options).args(["-max-time", "150", "-format-error"]);
        for (name, value) in call.headers() {
            // Reflection is asked with the same headers.
            command.args(["-H", &format!("{name}: {value}")]);
        }
        command.args(["-d", "@", &self.address, &call.path()]);
        let output = feed(command, json::request(call)?.to_string().as_bytes()).await?;
        if output.status.success() {
            let values = Deserializer::from_slice(&output.stdout).into_iter::<Value>();
            return values.map(|value| json::answer(call, &value?)).collect::<Result<Vec<_>>>().map(Ok);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        // "ERROR:" and the status in JSON; anything else is grpcurl's own complaint.
        let status = stderr.find('{').and_then(|at| serde_json::from_str(stderr[at..].trim()).ok());
        Ok(Err(Refusal::from_json(&status.with_context(|| format!("grpcurl: {}", stderr.trim()))?)))
    }
}

#[async_trait]
impl Face for Grpcurl {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn unary(&self, call: Call<'_>) -> Result<Vec<u8>, Refusal> {
        let mut answers = self.stream(call).await?;
        match (answers.pop(), answers.is_empty()) {
            (Some(answer), true) => Ok(answer),
            _ => Err(Refusal::harness("not one answer")),
        }
    }

    async fn stream(&self, call: Call<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
        self.answers_or_error(&call).await.map_err(|error| Refusal::harness(format!("{error:#}")))?
    }
}
