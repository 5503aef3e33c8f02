//! `make lint` holds the .proto files against the last release. Here: that growing passes and that breaking does not.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const RELEASED: &str = "proto/released/last.binpb";
const SERVICE: &str = "v1/snapshot_service.proto";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What buf says of a copy of the .proto files in which this was replaced; nothing where it is content.
fn judged(file: &str, from: &str, to: &str) -> String {
    let copy = tempfile::tempdir().unwrap();
    let folder = copy.path().join("proto");
    let copied = Command::new("cp").args(["-r", "proto", "buf.yaml"]).arg(copy.path()).current_dir(root()).status();
    assert!(copied.unwrap().success());
    let file = folder.join("proto/ravada/snapshot").join(file);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from} is not in {}", file.display());
    fs::write(&file, text.replacen(from, to, 1)).unwrap();
    let mut buf = Command::new(root().join("gateway/web/node_modules/.bin/buf"));
    buf.arg("breaking").arg("--against").arg(root().join(RELEASED)).current_dir(copy.path());
    let output = buf.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() == said.is_empty(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn the_protos_may_grow_and_nothing_else() {
    let service = "service SnapshotService {";
    assert_eq!(judged(SERVICE, service, service), "", "as they are");
    let grown = format!("message New {{ string name = 1; }}\n{service}\n  rpc Renew(New) returns (New);");
    assert_eq!(judged(SERVICE, service, &grown), "");
    for (file, from, to, word) in [
        (SERVICE, "rpc PurgeVm(PurgeVmRequest) returns (Operation);", "", "PurgeVm"),
        (SERVICE, "bool force = 5;", "", "force"),
        (SERVICE, "bool force = 5;", "string force = 5;", "force"),
        (SERVICE, "bool force = 5;", "bool forced = 5;", "force"),
        (SERVICE, "DELETE_SCOPE_SUBTREE = 2;", "DELETE_SCOPE_ALL = 2;", "DELETE_SCOPE_SUBTREE"),
        ("agent/v1/agent_service.proto", "service AgentService {", "service Agent2Service {", "AgentService"),
    ] {
        let said = judged(file, from, to);
        assert!(said.contains(word), "{from} -> {to}: {said:?}");
    }
}
