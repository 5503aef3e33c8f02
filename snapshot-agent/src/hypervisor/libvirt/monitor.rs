//! QEMU's own monitor (QMP), by way of libvirt: for what libvirt has no call for.
//!
//! libvirt does not know what is done here, so whoever does it tells libvirt afterwards. It marks the machine as tainted
//! (`custom-monitor`), and logs that once.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use virt::domain::Domain;
use virt_sys as sys;

use super::super::Failure;
use super::super::block_nodes::{Block, tops};
use super::volumes;

/// A job, as `query-jobs` tells of it.
#[derive(Debug, Deserialize)]
pub(super) struct Job {
    pub(super) id: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    /// Why it failed, once it has.
    #[serde(default)]
    pub(super) error: Option<String>,
}

/// Has QEMU do something, and reads its answer. [`Failure::Refused`] is QEMU's own refusal, in its words.
pub(super) fn ask<T: DeserializeOwned>(domain: &Domain, command: &str, arguments: Value) -> Result<T, Failure> {
    let asked = json!({ "execute": command, "arguments": arguments }).to_string();
    read(command, &domain.qemu_monitor_command(&asked, 0)?)
}

/// QEMU's answer: what it returns, or why it does not.
fn read<T: DeserializeOwned>(command: &str, answer: &str) -> Result<T, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        r#return: Option<Value>,
        error: Option<Refusal>,
    }
    #[derive(Deserialize)]
    struct Refusal {
        desc: String,
    }
    let unreadable = |_| Failure::Unintelligible(format!("QEMU's answer to {command}: {answer}"));
    let said: Answer = serde_json::from_str(answer).map_err(unreadable)?;
    match said.error {
        Some(Refusal { desc }) => {
            let message = format!("QEMU, {command}: {desc}");
            Err(Failure::Refused { code: sys::VIR_ERR_OPERATION_FAILED, message })
        }
        None => serde_json::from_value(said.r#return.unwrap_or_default()).map_err(unreadable),
    }
}

/// The jobs that QEMU has, ended ones that nobody has dismissed included.
pub(super) fn jobs(domain: &Domain) -> Result<Vec<Job>, Failure> {
    ask(domain, "query-jobs", json!({}))
}

/// The node on top of each of these disks, by target. QEMU is asked, and has to be on the file that libvirt has it on.
pub(super) fn nodes(domain: &Domain, targets: &[&str]) -> Result<BTreeMap<String, String>, Failure> {
    let xml = volumes::parse(domain, &domain.xml_desc(0)?)?;
    let blocks: Vec<Block> = ask(domain, "query-block", json!({}))?;
    let disks = xml.attached().filter(|disk| targets.contains(&disk.target.as_str()));
    let nodes = tops(&blocks, disks).map_err(Failure::Unintelligible)?;
    match targets.iter().find(|target| !nodes.contains_key(**target)) {
        None => Ok(nodes),
        Some(target) => Err(Failure::Unintelligible(format!("the machine has no disk {target}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_a_refusal_and_nonsense_are_told_apart() {
        let read = |answer| super::read::<BTreeMap<String, u32>>("query-x", answer);
        assert_eq!(read(r#"{"return": {"a": 1}, "id": "libvirt-9"}"#), Ok(BTreeMap::from([("a".to_owned(), 1)])));
        let refused = read(r#"{"id": "libvirt-9", "error": {"class": "GenericError", "desc": "no such node"}}"#);
        let message = "QEMU, query-x: no such node".to_owned();
        assert_eq!(refused, Err(Failure::Refused { code: sys::VIR_ERR_OPERATION_FAILED, message }));
        assert!(matches!(read(r#"{"return": [1]}"#), Err(Failure::Unintelligible(_))));
        assert!(matches!(read("{}"), Err(Failure::Unintelligible(_))));
        assert!(matches!(read("?"), Err(Failure::Unintelligible(_))));
    }
}
