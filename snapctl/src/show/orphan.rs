//! Orphans: as a table, and one of them with all that is known of it.

use proto::v1;

use super::table::Table;
use super::{clean, size, time, word};
use crate::lookup::id;

/// Characters of an id that tell orphans apart in a table.
const ID_CHARS: usize = 8;

/// `orphans`.
pub(crate) fn orphans(answer: &v1::ListOrphansResponse) -> String {
    let mut table = Table::new(&["ID", "HOST", "VM", "FILE", "HOLDS", "SIZE", "WRITTEN", "DELETABLE"]);
    for orphan in &answer.orphans {
        let gone = if orphan.vm_exists { "" } else { " (gone)" };
        let deletable = if orphan.deletable { "yes".to_owned() } else { format!("no: {}", orphan.message) };
        table.row([
            id(&orphan.name).chars().take(ID_CHARS).collect(),
            host(orphan).to_owned(),
            format!("{}{gone}", orphan.vm_display_name),
            id(&orphan.path).to_owned(),
            holds(orphan),
            size(orphan.allocation_bytes),
            time(orphan.write_time.as_ref()),
            deletable,
        ]);
    }
    let bytes: i64 = answer.orphans.iter().fold(0, |sum, orphan| sum.saturating_add(orphan.allocation_bytes));
    let orphans = if answer.orphans.len() == 1 { "orphan" } else { "orphans" };
    format!("{}{} {orphans}, {}\n", table.text(), answer.orphans.len(), size(bytes))
}

/// What one holds.
pub(crate) fn orphan(orphan: &v1::Orphan) -> String {
    let gone = if orphan.vm_exists { "" } else { ", which does not exist any more" };
    let backing = if orphan.backing_path.is_empty() { "none" } else { &orphan.backing_path };
    let lines = [
        ("orphan", id(&orphan.name).to_owned()),
        ("host", host(orphan).to_owned()),
        ("VM", format!("{} ({}){gone}", orphan.vm_display_name, id(&orphan.vm))),
        ("snapshot", format!("{} ({})", orphan.snapshot_display_name, id(&orphan.snapshot))),
        ("holds", holds(orphan)),
        ("file", orphan.path.clone()),
        ("backing", backing.to_owned()),
        ("takes", size(orphan.allocation_bytes)),
        ("disk size", size(orphan.capacity_bytes)),
        ("created", time(orphan.create_time.as_ref())),
        ("written", time(orphan.write_time.as_ref())),
    ];
    let line = |(what, value): &(&str, String)| format!("  {what:<9}  {}\n", clean(value));
    lines.iter().map(line).collect()
}

fn host(orphan: &v1::Orphan) -> &str {
    orphan.name.strip_prefix("hosts/").and_then(|rest| rest.split('/').next()).unwrap_or_default()
}

fn holds(orphan: &v1::Orphan) -> String {
    let what = match orphan.kind() {
        v1::OrphanKind::Overlay => "a disk since",
        v1::OrphanKind::RevertOverlay => "a disk since the revert to",
        v1::OrphanKind::RunningState => "the running state in",
        v1::OrphanKind::Unspecified => "something of",
    };
    let snapshot = match orphan.snapshot_display_name.as_str() {
        "" => id(&orphan.snapshot).to_owned(),
        name => format!("“{name}”"),
    };
    match orphan.state() {
        v1::OrphanState::Ready => format!("{what} {snapshot}"),
        state => format!(
            "{what} {snapshot}, {}",
            word(state.as_str_name(), "ORPHAN_STATE_").replace("unspecified", "unknown")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_says_what_it_holds_and_why_it_stays() {
        let told = v1::Orphan {
            name: "hosts/alpha/orphans/0191f7a0-0000-7000-8000-00000000000b".to_owned(),
            vm_display_name: "desk\u{1b}[2J".to_owned(),
            snapshot_display_name: "before exam".to_owned(),
            path: "/images/vdb.snap-1".to_owned(),
            allocation_bytes: 3 << 30,
            kind: v1::OrphanKind::Overlay.into(),
            state: v1::OrphanState::Ready.into(),
            message: "a process has the file open".to_owned(),
            ..Default::default()
        };
        let table = orphans(&v1::ListOrphansResponse { orphans: vec![told.clone()], ..Default::default() });
        for part in
            ["0191f7a0 ", "alpha", "(gone)", "vdb.snap-1", "a disk since “before exam”", "3.0 GiB", "no: a process"]
        {
            assert!(table.contains(part), "{part} is not in {table}");
        }
        let one = orphan(&told);
        assert!(one.contains("/images/vdb.snap-1") && !one.contains('\u{1b}') && !table.contains('\u{1b}'), "{one}");
    }
}
