//! Why a command did not do what it was asked, and its exit code.

use proto::v1;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::advice::advice;

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line, a setting, or what a name stands for.
    #[error("{0}")]
    Usage(String),
    /// No token was given.
    #[error("there is no token: set SNAPCTL_TOKEN or give --token-file")]
    NoToken,
    /// The service refused, or was not reached.
    #[error("{}", .0.message())]
    Status(Box<Status>),
    /// An operation was begun and did not succeed.
    #[error("{}", ended(.0))]
    Ended(Box<v1::Operation>),
    /// Nobody confirmed it.
    #[error("{0}")]
    NotConfirmed(String),
    /// What was to be printed could not be.
    #[error("cannot print: {0}")]
    Output(#[from] std::io::Error),
    /// The service answered in a way that this version cannot read.
    #[error("{0}")]
    Answer(String),
}

fn ended(operation: &v1::Operation) -> String {
    match (&operation.error, operation.state()) {
        (Some(error), _) => format!("{} failed: {}", operation.name, error.message),
        (None, v1::OperationState::Cancelled) => format!("{} was stopped on request", operation.name),
        (None, state) => format!("{} ended as {}", operation.name, state.as_str_name()),
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl Failure {
    /// The command line, a setting, or what a name stands for.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// As `snapctl --help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Ended(_) | Self::Output(_) | Self::Answer(_) => 1,
            Self::Usage(_) => 2,
            Self::NoToken => 4,
            Self::NotConfirmed(_) => 5,
            Self::Status(status) => match status.code() {
                Code::Unavailable | Code::DeadlineExceeded => 3,
                Code::Unauthenticated | Code::PermissionDenied => 4,
                _ => 1,
            },
        }
    }

    /// The reason, as docs/errors.md has it, where the service gave one.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Status(status) => {
                let info = status.get_details_error_info()?;
                (info.domain == proto::status::ERROR_DOMAIN).then_some(info.reason)
            }
            Self::Ended(operation) => Some(operation.error.as_ref()?.reason.clone()),
            Self::NoToken => Some("TOKEN_MISSING".to_owned()),
            Self::Usage(_) | Self::NotConfirmed(_) | Self::Output(_) | Self::Answer(_) => None,
        }
    }

    fn facts(&self) -> Vec<(String, String)> {
        let metadata = match self {
            Self::Status(status) => status.get_details_error_info().map(|info| info.metadata),
            Self::Ended(operation) => operation.error.as_ref().map(|error| error.metadata.clone()),
            _ => None,
        };
        let mut facts: Vec<_> = metadata.unwrap_or_default().into_iter().collect();
        facts.sort();
        facts
    }

    /// For a person: what happened, the reason and its facts, and what to do about it.
    pub fn told(&self) -> String {
        let mut text = format!("snapctl: {self}\n");
        if let Some(reason) = self.reason() {
            text += &format!("  reason: {reason}\n");
            for (key, value) in self.facts() {
                text += &format!("  {key}: {value}\n");
            }
            if let Some(advice) = advice(&reason) {
                text += &format!("  {advice}\n");
            }
        } else if self.exit_code() == 3 {
            text += "  The service cannot be reached: look at the address, the network, and the service itself.\n";
        }
        text
    }

    /// The same for a program.
    pub fn json(&self) -> Value {
        let reason = self.reason().unwrap_or_default();
        let facts: serde_json::Map<_, _> = self.facts().into_iter().map(|(key, value)| (key, value.into())).collect();
        let advice = advice(&reason).unwrap_or_default();
        json!({ "error": {
            "message": self.to_string(), "reason": reason, "metadata": facts, "advice": advice, "exitCode": self.exit_code(),
        } })
    }
}

#[cfg(test)]
mod tests {
    use snapshot_core::{Error, Reason};

    use super::*;

    fn of(reason: Reason) -> Failure {
        proto::status::to_status(&Error::new(reason, "why").with("vm", "vms/1")).into()
    }

    #[test]
    fn each_exit_code_means_one_thing() {
        for (reason, code) in [
            (Reason::VmBusy, 1),
            (Reason::VmNotFound, 1),
            (Reason::HostUnreachable, 3),
            (Reason::TokenExpired, 4),
            (Reason::ActionNotGranted, 4),
        ] {
            assert_eq!(of(reason).exit_code(), code, "{reason}");
        }
        assert_eq!(Failure::from(Status::unavailable("tcp connect error")).exit_code(), 3);
        assert_eq!(Failure::usage("x").exit_code(), 2);
        assert_eq!(Failure::NotConfirmed(String::new()).exit_code(), 5);
    }

    #[test]
    fn a_refusal_is_told_with_its_reason_its_facts_and_advice() {
        let failure = of(Reason::VmBusy);
        let told = failure.told();
        for part in ["why", "VM_BUSY", "vm: vms/1", "waits for its end"] {
            assert!(told.contains(part), "{told}");
        }
        let json = failure.json();
        assert_eq!((&json["error"]["reason"], &json["error"]["metadata"]["vm"]), (&"VM_BUSY".into(), &"vms/1".into()));
    }
}
