//! JSON over plain HTTP (the Connect protocol), by the real `curl`.

use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tonic::Code;

use super::{Call, Face, Refusal, json};

/// Set in a frame's first byte when it ends the stream.
const END: u8 = 0x02;
const PREFIX: usize = 5;
/// curl appends the HTTP status after this.
const MARK: &[u8] = b"\nHTTP status ";

/// JSON through the gateway.
pub struct Curl {
    port: u16,
}

impl Curl {
    /// To the gateway.
    pub fn new(port: u16) -> Self {
        Self { port }
    }

    /// The body and the HTTP status.
    async fn post(&self, call: &Call<'_>, kind: &str, body: &[u8]) -> Result<(Vec<u8>, u16)> {
        let mut command = Command::new("curl");
        command.args([
            "-sS",
            "--max-time",
            "150",
            "-X",
            "POST",
            "-w",
            "\nHTTP status %{http_code}",
            "--data-binary",
            "@-",
        ]);
        command.args(["-H", &format!("content-type: {kind}"), "-H", "connect-protocol-version: 1"]);
        for (name, value) in call.headers() {
            command.args(["-H", &format!("{name}: {value}")]);
        }
        command.arg(format!("http://127.0.0.1:{}/{}", self.port, call.path()));
        let output = feed(command, body).await?;
        if !output.status.success() {
            bail!("curl ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        let text = &output.stdout;
        let at = text.windows(MARK.len()).rposition(|window| window == MARK).context("curl told no status")?;
        let status = std::str::from_utf8(&text[at + MARK.len()..])?.trim().parse()?;
        Ok((text[..at].to_vec(), status))
    }

    /// The very bytes of an answer to a call, and the HTTP status.
    pub async fn bytes(&self, call: &Call<'_>) -> Result<(Vec<u8>, u16)> {
        self.post(call, "application/json", json::request(call)?.to_string().as_bytes()).await
    }

    async fn unary_or_error(&self, call: &Call<'_>) -> Result<Result<Vec<u8>, Refusal>> {
        let (body, status) = self.bytes(call).await?;
        let value: Value = serde_json::from_slice(&body).with_context(|| {
            format!("HTTP {status} with a body that is no JSON: {}", String::from_utf8_lossy(&body))
        })?;
        if status == 200 {
            return Ok(Ok(json::answer(call, &value)?));
        }
        Ok(Err(refusal(&value)?))
    }

    async fn stream_or_error(&self, call: &Call<'_>) -> Result<Result<Vec<Vec<u8>>, Refusal>> {
        let request = json::request(call)?.to_string();
        let length = u32::try_from(request.len())?;
        let body = [&[0], length.to_be_bytes().as_slice(), request.as_bytes()].concat();
        let (body, status) = self.post(call, "application/connect+json", &body).await?;
        let mut rest = body.as_slice();
        let mut answers = Vec::new();
        while let Some((prefix, after)) = rest.split_first_chunk::<PREFIX>() {
            let [flag, length @ ..] = *prefix;
            let length = usize::try_from(u32::from_be_bytes(length))?;
            let content = after.get(..length).with_context(|| format!("HTTP {status}, a frame is cut short"))?;
            let value: Value = serde_json::from_slice(content)?;
            if flag & END != 0 {
                return value.get("error").map_or(Ok(Ok(answers)), |error| refusal(error).map(Err));
            }
            answers.push(json::answer(call, &value)?);
            rest = &after[length..];
        }
        bail!("HTTP {status}, the stream did not end as it should: {}", String::from_utf8_lossy(rest))
    }
}

#[async_trait]
impl Face for Curl {
    fn name(&self) -> &'static str {
        "JSON by curl"
    }

    async fn unary(&self, call: Call<'_>) -> Result<Vec<u8>, Refusal> {
        self.unary_or_error(&call).await.map_err(|error| Refusal::harness(format!("{error:#}")))?
    }

    async fn stream(&self, call: Call<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
        self.stream_or_error(&call).await.map_err(|error| Refusal::harness(format!("{error:#}")))?
    }
}

/// Runs a command with something on its stdin.
pub(super) async fn feed(mut command: Command, input: &[u8]) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("cannot start it")?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have ended without reading, and then says why on stderr.
        let _ = stdin.write_all(input).await;
    }
    Ok(child.wait_with_output().await?)
}

/// Connect's error: `{"code": "not_found", "message": …, "details": [{"type": …, "value": base64}]}`.
fn refusal(error: &Value) -> Result<Refusal> {
    // Connect writes base64 without padding and readers take both.
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let base64 = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let details = error.get("details").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let detail = |detail: &Value| Ok((text(detail, "type"), base64.decode(text(detail, "value"))?));
    let details: Vec<(String, Vec<u8>)> = details.iter().map(detail).collect::<Result<_>>()?;
    let name = text(error, "code");
    let code = (0..=16).map(Code::from_i32).find(|code| snake(&format!("{code:?}")) == name);
    Ok(Refusal::from_parts(code.with_context(|| format!("no code in {error}"))?, &text(error, "message"), &details))
}

/// `NotFound` as `not_found`; Connect writes `canceled` with one l.
fn snake(camel: &str) -> String {
    let mut out = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out.replace("cancelled", "canceled")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tonic::Code;

    use super::refusal;

    #[test]
    fn connects_errors_are_read() {
        let error = json!({
            "code": "failed_precondition", "message": "m",
            "details": [{"type": "google.rpc.ErrorInfo", "value": "CgFSEgFE"}],
        });
        let refused = refusal(&error).unwrap();
        assert_eq!((refused.code, refused.message.as_str()), (Code::FailedPrecondition, "m"));
        assert_eq!((refused.reason.as_str(), refused.details), ("R", vec!["google.rpc.ErrorInfo".to_owned()]));
        assert_eq!(refusal(&json!({"code": "canceled"})).unwrap().code, Code::Cancelled);
    }
}
