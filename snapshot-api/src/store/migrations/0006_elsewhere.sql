-- What other hosts than that of `vms` say of a VM, and which of them says that it is active there as well.
CREATE TABLE elsewhere (
    vm              TEXT    NOT NULL,
    host            TEXT    NOT NULL,
    facts           TEXT    NOT NULL,           -- JSON of snapshot_core::vm::VmFacts
    snapshots       TEXT    NOT NULL,           -- JSON array of snapshot_core::snapshot::SnapshotFacts
    observe_time    INTEGER NOT NULL,           -- milliseconds of the Unix epoch
    sequence        INTEGER NOT NULL,
    PRIMARY KEY (vm, host)
) STRICT, WITHOUT ROWID;
CREATE INDEX elsewhere_by_host ON elsewhere (host);

ALTER TABLE vms ADD COLUMN conflict TEXT;       -- the other host; NULL where there is none
CREATE INDEX vms_in_conflict ON vms (id) WHERE conflict IS NOT NULL;
