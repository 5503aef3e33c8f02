//! libvirt's errors in the agent's words.

use virt::error::Error;
use virt_sys as sys;

use super::super::Failure;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.code().to_raw() {
            sys::VIR_ERR_NO_DOMAIN => Self::VmGone,
            sys::VIR_ERR_NO_DOMAIN_SNAPSHOT => Self::SnapshotGone,
            code => Self::Refused { code, message: error.message().to_owned() },
        }
    }
}

impl From<quick_xml::DeError> for Failure {
    fn from(error: quick_xml::DeError) -> Self {
        Self::Unintelligible(format!("libvirt's XML: {error}"))
    }
}

impl From<quick_xml::Error> for Failure {
    fn from(error: quick_xml::Error) -> Self {
        Self::Unintelligible(format!("libvirt's XML: {error}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Unintelligible(error.to_string())
    }
}
