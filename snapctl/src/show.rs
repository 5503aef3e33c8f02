//! How answers look to a person: columns, sizes, times, the tree.
//!
//! Times are UTC. What others wrote (names, messages) is printed without control characters, which a terminal would obey.

mod orphan;
mod plan;
mod table;
mod tree;

use prost_types::{Duration, Timestamp};
use proto::v1;

pub(crate) use orphan::{orphan, orphans};
pub(crate) use plan::plan;
pub(crate) use tree::tree;

use crate::lookup::id;
use table::Table;

/// Binary units, as virsh and qemu-img have them.
pub(crate) fn size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut amount, mut unit) = (bytes as f64 / 1024.0, 0);
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS.get(unit).copied().unwrap_or_default())
}

/// Whole seconds, as `2026-11-23T18:42:01Z`; `-` for none.
pub(crate) fn time(time: Option<&Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| Timestamp { nanos: 0, ..*time }.to_string())
}

/// To a tenth of a second.
pub(crate) fn duration(duration: &Duration) -> String {
    format!("{:.1} s", duration.seconds as f64 + f64::from(duration.nanos) / 1e9)
}

/// Without what a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The last word of a protobuf enum's value, in small letters: `VM_STATE_RUNNING` under `VM_STATE_` is `running`.
fn word(value: &str, prefix: &str) -> String {
    value.strip_prefix(prefix).unwrap_or(value).to_lowercase().replace('_', " ")
}

/// `hosts`.
pub(crate) fn hosts(answer: &v1::ListHostsResponse) -> String {
    let mut table = Table::new(&["HOST", "REACHABLE", "MACHINES", "RUNNING", "AGENT", "LIBVIRT", "QEMU", "FREE"]);
    for host in &answer.hosts {
        let free = host.file_systems.iter().map(|fs| format!("{} {}", fs.path, size(fs.free_bytes)));
        let reachable = if host.reachable { "yes".to_owned() } else { format!("no: {}", host.unreachable_reason) };
        table.row([
            host.name.strip_prefix("hosts/").unwrap_or(&host.name).to_owned(),
            reachable,
            host.vm_count.to_string(),
            host.running_operations.len().to_string(),
            host.agent_version.clone(),
            host.libvirt_version.clone(),
            host.qemu_version.clone(),
            free.collect::<Vec<_>>().join(", "),
        ]);
    }
    table.text()
}

/// `vms`.
pub(crate) fn vms(answer: &v1::ListVmsResponse) -> String {
    let mut table = Table::new(&["NAME", "STATE", "SNAPSHOTS", "HOST", "UUID", ""]);
    for vm in &answer.vms {
        let busy = if vm.active_operation.is_empty() { "" } else { "busy" };
        let away = if vm.host_reachable { "" } else { "host away" };
        table.row([
            vm.display_name.clone(),
            word(vm.state().as_str_name(), "VM_STATE_"),
            vm.snapshot_count.to_string(),
            vm.host.strip_prefix("hosts/").unwrap_or(&vm.host).to_owned(),
            id(&vm.name).to_owned(),
            [busy, away].join(" ").trim().to_owned(),
        ]);
    }
    table.text()
}

/// `operations`.
pub(crate) fn operations(answer: &v1::ListOperationsResponse) -> String {
    let mut table = Table::new(&["BEGUN", "KIND", "STATE", "BY", "MACHINE", "SNAPSHOT", "OPERATION"]);
    for operation in &answer.operations {
        let state = word(operation.state().as_str_name(), "OPERATION_STATE_");
        let state = match (&operation.progress, operation.state(), &operation.error) {
            (Some(progress), v1::OperationState::Running, _) => format!("{state} {} %", progress.percent),
            (_, _, Some(error)) => format!("{state}: {}", error.reason),
            _ => state,
        };
        table.row([
            time(operation.create_time.as_ref()),
            word(operation.kind().as_str_name(), "OPERATION_KIND_"),
            state,
            operation.actor.clone(),
            id(&operation.vm).to_owned(),
            id(&operation.snapshot).to_owned(),
            id(&operation.name).to_owned(),
        ]);
    }
    table.text()
}

/// One operation, and what came of it.
pub(crate) fn operation(operation: &v1::Operation) -> String {
    let kind = word(operation.kind().as_str_name(), "OPERATION_KIND_");
    let state = word(operation.state().as_str_name(), "OPERATION_STATE_");
    let mut text = format!("{kind}: {state}\n  operation: {}\n", id(&operation.name));
    for (what, name) in [("snapshot", &operation.snapshot), ("saved as", &operation.saved_snapshot)] {
        if !name.is_empty() {
            text += &format!("  {what}: {}\n", id(name));
        }
    }
    if let (Some(progress), v1::OperationState::Running) = (&operation.progress, operation.state()) {
        text += &format!("  progress: {} %, {}\n", progress.percent, clean(&progress.phase));
    }
    if let Some(pause) = &operation.pause {
        let expected = operation.predicted_pause.as_ref();
        let expected = expected.map(|pause| format!(", about {} were expected", duration(pause))).unwrap_or_default();
        text += &format!("  the machine stood still for {}{expected}\n", duration(pause));
    }
    for note in &operation.notes {
        text += &format!("  note: {}\n", clean(&note.message));
    }
    if let Some(error) = &operation.error {
        text += &format!("  {}: {}\n", error.reason, clean(&error.message));
    }
    text
}

/// `reconcile`.
pub(crate) fn reconciled(answer: &v1::ReconcileHostResponse) -> String {
    let took = answer.duration.as_ref().map(|took| format!(" in {}", duration(took))).unwrap_or_default();
    format!("read anew{took}; {} corrected\n", answer.corrected_count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_for_people() {
        assert_eq!((size(0), size(1023), size(1536)), ("0 B".into(), "1023 B".into(), "1.5 KiB".into()));
        assert_eq!((size(1 << 30), size((1 << 20) - 1)), ("1.0 GiB".to_owned(), "1.0 MiB".to_owned()));
        assert_eq!(time(Some(&Timestamp { seconds: 0, nanos: 5 })), "1970-01-01T00:00:00Z");
        assert_eq!(time(None), "-");
    }

    #[test]
    fn a_terminal_is_given_nothing_to_obey() {
        let vm = v1::Vm { display_name: "a\u{1b}[2J".to_owned(), host_reachable: true, ..Default::default() };
        assert!(!vms(&v1::ListVmsResponse { vms: vec![vm], ..Default::default() }).contains('\u{1b}'));
    }
}
