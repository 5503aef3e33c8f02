//! A machine's snapshots, children below their parents.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1;

use super::table::Table;
use super::{size, time, word};
use crate::lookup::id;

/// `snapshots`: one a line, the oldest first among brothers. `*` marks the one that the machine's present is based on.
pub(crate) fn tree(answer: &v1::ListSnapshotsResponse) -> String {
    if answer.snapshots.is_empty() {
        return "There are no snapshots.\n".to_owned();
    }
    let names: BTreeSet<&str> = answer.snapshots.iter().map(|it| it.name.as_str()).collect();
    let mut children: BTreeMap<&str, Vec<&v1::Snapshot>> = BTreeMap::new();
    for snapshot in &answer.snapshots {
        // A parent that is not listed would hide what is below it.
        let parent = Some(snapshot.parent_snapshot.as_str()).filter(|parent| names.contains(parent));
        children.entry(parent.unwrap_or_default()).or_default().push(snapshot);
    }
    for brothers in children.values_mut() {
        let seconds = |it: &v1::Snapshot| it.create_time.as_ref().map(|time| (time.seconds, time.nanos));
        brothers.sort_by(|a, b| seconds(a).cmp(&seconds(b)).then_with(|| a.name.cmp(&b.name)));
    }
    let mut table = Table::new(&["", "NAME", "TAKEN", "SIZE", "KIND", "", "ID"]);
    // What is still to be shown, the next one last: with what stands before it, and before what is below it.
    let mut ahead = Vec::new();
    push(&mut ahead, &children, "", None);
    while let Some((snapshot, line, below)) = ahead.pop() {
        table.row([
            if snapshot.is_current { "*" } else { "" }.to_owned(),
            format!("{line}{}", snapshot.display_name),
            time(snapshot.create_time.as_ref()),
            size(snapshot.size_bytes),
            kind(snapshot),
            marks(snapshot),
            id(&snapshot.name).to_owned(),
        ]);
        push(&mut ahead, &children, &snapshot.name, Some(&below));
    }
    table.text()
}

fn push<'a>(
    ahead: &mut Vec<(&'a v1::Snapshot, String, String)>,
    children: &BTreeMap<&str, Vec<&'a v1::Snapshot>>,
    parent: &str,
    before: Option<&str>,
) {
    let brothers = children.get(parent).map(Vec::as_slice).unwrap_or_default();
    for (from_end, snapshot) in brothers.iter().rev().enumerate() {
        let (line, below) = match (before, from_end) {
            (None, _) => (String::new(), String::new()),
            (Some(before), 0) => (format!("{before}└─ "), format!("{before}   ")),
            (Some(before), _) => (format!("{before}├─ "), format!("{before}│  ")),
        };
        ahead.push((snapshot, line, below));
    }
}

fn kind(snapshot: &v1::Snapshot) -> String {
    let memory = match snapshot.content() {
        v1::SnapshotContent::DisksAndMemory => "disks and memory",
        v1::SnapshotContent::Disks | v1::SnapshotContent::Unspecified => "disks",
    };
    format!("{memory}, {}", word(snapshot.storage().as_str_name(), "STORAGE_KIND_"))
}

fn marks(snapshot: &v1::Snapshot) -> String {
    let mut marks = Vec::new();
    if snapshot.protected {
        marks.push("protected".to_owned());
    }
    if snapshot.origin() == v1::SnapshotOrigin::Foreign {
        marks.push("made by another tool".to_owned());
    }
    if !matches!(snapshot.state(), v1::SnapshotState::Ready | v1::SnapshotState::Unspecified) {
        marks.push(word(snapshot.state().as_str_name(), "SNAPSHOT_STATE_"));
    }
    marks.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, parent: &str, second: i64) -> v1::Snapshot {
        v1::Snapshot {
            name: name.to_owned(),
            display_name: name.to_owned(),
            parent_snapshot: parent.to_owned(),
            create_time: Some(prost_types::Timestamp { seconds: second, nanos: 0 }),
            is_current: name == "d",
            ..Default::default()
        }
    }

    #[test]
    fn children_stand_below_their_parents_in_the_order_of_time() {
        let snapshots = vec![
            snapshot("e", "a", 5),
            snapshot("d", "c", 4),
            snapshot("c", "a", 3),
            snapshot("a", "", 1),
            snapshot("f", "not listed", 6),
        ];
        let text = tree(&v1::ListSnapshotsResponse { snapshots, ..Default::default() });
        let lines: Vec<&str> =
            text.lines().skip(1).map(|line| line.split("  1970").next().unwrap().trim_end()).collect();
        assert_eq!(lines, ["   a", "   ├─ c", "*  │  └─ d", "   └─ e", "   f"]);
    }

    #[test]
    fn a_long_chain_is_shown_whole() {
        let parent = |n: usize| if n == 0 { String::new() } else { (n - 1).to_string() };
        let snapshots = (0..2000).map(|n| snapshot(&n.to_string(), &parent(n), 0)).collect();
        let text = tree(&v1::ListSnapshotsResponse { snapshots, ..Default::default() });
        assert_eq!(text.lines().count(), 2001);
    }
}
