//! What a host tells of an orphan, held against bounds: names are parsed, texts are cut, numbers are not negative.

use proto::convert::unix_millis;
use proto::{names, v1};
use snapshot_core::ids::{HostId, OrphanId};
use snapshot_core::{Error, Reason};

/// The longest path on Linux, in bytes.
const PATH_MAX: usize = 4096;
/// Characters of names and sentences.
const NAME_CHARS: usize = 256;
const SENTENCE_CHARS: usize = 1024;

/// The orphan as it is passed on, and its id.
pub(super) fn checked(host: &HostId, told: v1::Orphan) -> Result<(OrphanId, v1::Orphan), Error> {
    let malformed =
        |what: &str| Error::new(Reason::HostProtocol, format!("the host told of an orphan with a malformed {what}"));
    let (of, id) = names::parse_orphan("name", &told.name).map_err(|_| malformed("name"))?;
    let vm = names::parse_vm("vm", &told.vm).map_err(|_| malformed("VM"))?;
    let (of_vm, snapshot) = names::parse_snapshot("snapshot", &told.snapshot).map_err(|_| malformed("snapshot"))?;
    if of != *host || of_vm != vm {
        return Err(malformed("name"));
    }
    if told.path.len() > PATH_MAX || told.backing_path.len() > PATH_MAX || !told.path.starts_with('/') {
        return Err(malformed("path"));
    }
    if told.etag.len() > NAME_CHARS || !told.etag.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(malformed("etag"));
    }
    let cut = |text: String, chars: usize| text.chars().take(chars).collect::<String>();
    let is_reason =
        !told.reason.is_empty() && told.reason.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    let (kind, state) = (told.kind(), told.state());
    let mut orphan = v1::Orphan {
        name: names::orphan(host, id),
        vm: names::vm(vm),
        vm_display_name: cut(told.vm_display_name, NAME_CHARS),
        vm_exists: told.vm_exists,
        snapshot: names::snapshot(vm, &snapshot),
        snapshot_display_name: cut(told.snapshot_display_name, NAME_CHARS),
        path: told.path,
        backing_path: told.backing_path,
        allocation_bytes: told.allocation_bytes.max(0),
        capacity_bytes: told.capacity_bytes.max(0),
        create_time: told.create_time.filter(|time| unix_millis(*time).is_some()),
        write_time: told.write_time.filter(|time| unix_millis(*time).is_some()),
        deletable: told.deletable,
        reason: if is_reason { cut(told.reason, NAME_CHARS) } else { String::new() },
        message: cut(told.message, SENTENCE_CHARS),
        etag: told.etag,
        ..v1::Orphan::default()
    };
    // Values of a newer agent are unspecified here.
    orphan.set_kind(kind);
    orphan.set_state(state);
    Ok((id, orphan))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostId {
        "alpha".parse().unwrap()
    }

    fn told() -> v1::Orphan {
        let vm = "vms/0191f7a0-0000-7000-8000-00000000000a".to_owned();
        v1::Orphan {
            name: "hosts/alpha/orphans/0191f7a0-0000-7000-8000-00000000000b".to_owned(),
            snapshot: format!("{vm}/snapshots/snap-1"),
            vm,
            path: "/images/vda.snap-1".to_owned(),
            allocation_bytes: 5,
            etag: "e".to_owned(),
            ..v1::Orphan::default()
        }
    }

    #[test]
    fn what_is_sound_is_passed_on() {
        let (id, orphan) = checked(&host(), told()).unwrap();
        assert_eq!((orphan.clone(), id.to_string()), (told(), "0191f7a0-0000-7000-8000-00000000000b".to_owned()));
    }

    #[test]
    fn an_agent_that_lies_is_not_passed_on() {
        let lies: [fn(&mut v1::Orphan); 8] = [
            |it| it.name = "hosts/beta/orphans/0191f7a0-0000-7000-8000-00000000000b".to_owned(),
            |it| it.name = "hosts/alpha/orphans/x".to_owned(),
            |it| it.vm = "vms/0191f7a0-0000-7000-8000-00000000000c".to_owned(),
            |it| it.vm = String::new(),
            |it| it.snapshot = "snap-1".to_owned(),
            |it| it.path = "x".repeat(5000),
            |it| it.path = "relative".to_owned(),
            |it| it.etag = "a\\nb".to_owned() + "\n",
        ];
        for (number, lie) in lies.into_iter().enumerate() {
            let mut orphan = told();
            lie(&mut orphan);
            let refusal = checked(&host(), orphan).unwrap_err();
            assert_eq!(refusal.reason(), Reason::HostProtocol, "{number}");
        }
        let mut orphan = told();
        orphan.allocation_bytes = -1;
        orphan.kind = 99;
        orphan.message = "x".repeat(5000);
        orphan.reason = "not a reason".to_owned();
        orphan.write_time = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: -1 });
        let (_, passed_on) = checked(&host(), orphan).unwrap();
        assert_eq!((passed_on.allocation_bytes, passed_on.kind, passed_on.message.len()), (0, 0, 1024));
        assert_eq!((passed_on.reason.as_str(), passed_on.write_time), ("", None));
    }
}
