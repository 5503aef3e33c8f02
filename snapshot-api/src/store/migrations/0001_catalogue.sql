-- One row: what is true of the file as a whole.
CREATE TABLE catalogue (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    epoch           TEXT    NOT NULL,
    -- Stamped on every row that a job changes.
    revision        INTEGER NOT NULL DEFAULT 0,
    -- Removals up to this revision are forgotten: who saw less has to read everything again.
    removals_since  INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE hosts (
    id              TEXT    PRIMARY KEY,
    facts           TEXT    NOT NULL,           -- JSON, as the agent told them
    observe_time    INTEGER NOT NULL            -- milliseconds of the Unix epoch
) STRICT, WITHOUT ROWID;

CREATE TABLE vms (
    id              TEXT    PRIMARY KEY,        -- libvirt's UUID
    host            TEXT    NOT NULL,
    facts           TEXT    NOT NULL,           -- JSON of snapshot_core::vm::VmFacts
    observe_time    INTEGER NOT NULL,           -- milliseconds of the Unix epoch
    sequence        INTEGER NOT NULL DEFAULT 0, -- the agent's number of this telling; a lower one comes late
    revision        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX vms_by_host ON vms (host, id);

CREATE TABLE snapshots (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of lists: a parent is always inserted first
    vm              TEXT    NOT NULL,
    id              TEXT    NOT NULL,
    parent          TEXT,
    depth           INTEGER NOT NULL,
    is_current      INTEGER NOT NULL CHECK (is_current IN (0, 1)),
    facts           TEXT    NOT NULL,           -- JSON of snapshot_core::snapshot::SnapshotFacts
    creating_by     TEXT,                       -- the operation that takes it now
    deleting_by     TEXT,                       -- the operation that deletes it now
    label_revision  INTEGER NOT NULL,           -- the etag
    revision        INTEGER NOT NULL,
    UNIQUE (vm, id)
) STRICT;
CREATE INDEX snapshots_by_vm ON snapshots (vm, seq);
CREATE INDEX snapshots_by_parent ON snapshots (vm, parent);
CREATE INDEX snapshots_by_revision ON snapshots (vm, revision);

CREATE TABLE removed_snapshots (
    vm              TEXT    NOT NULL,
    id              TEXT    NOT NULL,
    revision        INTEGER NOT NULL,
    PRIMARY KEY (vm, revision, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX removed_by_revision ON removed_snapshots (revision);

CREATE TABLE operations (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of lists
    id              TEXT    NOT NULL UNIQUE,
    vm              TEXT    NOT NULL,
    host            TEXT    NOT NULL,
    snapshot        TEXT,
    kind            TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
    request         TEXT    NOT NULL,           -- JSON of snapshot_core::operation::Request
    actor           TEXT    NOT NULL,
    request_id      TEXT,
    fingerprint     TEXT    NOT NULL,           -- of the caller's request: a replay must be of the same one
    phase           TEXT    NOT NULL DEFAULT '',
    percent         INTEGER NOT NULL DEFAULT 0,
    bytes_done      INTEGER NOT NULL DEFAULT 0,
    bytes_total     INTEGER NOT NULL DEFAULT 0,
    cancellable     INTEGER NOT NULL DEFAULT 0,
    error           TEXT,                       -- JSON of snapshot_core::Error
    method          TEXT,
    pause_ms        INTEGER,
    create_time     INTEGER NOT NULL,           -- milliseconds of the Unix epoch
    start_time      INTEGER,
    end_time        INTEGER,
    revision        INTEGER NOT NULL
) STRICT;
-- One mutation per machine at a time, held by the database itself.
CREATE UNIQUE INDEX one_operation_per_vm ON operations (vm) WHERE state IN ('pending', 'running');
-- A replay finds the first operation; one that came to nothing may be asked for again.
CREATE UNIQUE INDEX operations_by_request_id ON operations (actor, request_id)
    WHERE request_id IS NOT NULL AND state IN ('pending', 'running', 'succeeded');
CREATE INDEX operations_by_vm ON operations (vm, seq);
CREATE INDEX operations_active_by_host ON operations (host) WHERE state IN ('pending', 'running');
CREATE INDEX operations_by_revision ON operations (vm, revision);
