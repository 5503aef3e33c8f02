-- What was asked for, refused, and came to an end: a chain, see docs/adr/0021. Every column but `hash` is in the hash.
CREATE TABLE audit (
    seq             INTEGER PRIMARY KEY,
    version         INTEGER NOT NULL,           -- of the encoding that is hashed (snapshot_core::audit)
    time_ms         INTEGER NOT NULL,           -- milliseconds of the Unix epoch
    served_ms       INTEGER NOT NULL,           -- how long the service had run: what events are kept by
    count           INTEGER NOT NULL,           -- more than 1 where refusals were counted
    issuer          TEXT    NOT NULL,
    subject         TEXT    NOT NULL,
    token_id        TEXT    NOT NULL,
    peer            TEXT    NOT NULL,
    method          TEXT    NOT NULL,
    request_id      TEXT    NOT NULL,
    vm              TEXT    NOT NULL,           -- empty where none was named; so with those that follow
    snapshot        TEXT    NOT NULL,
    operation       TEXT    NOT NULL,
    outcome         TEXT    NOT NULL,
    reason          TEXT    NOT NULL,
    detail          TEXT    NOT NULL,
    previous        BLOB    NOT NULL CHECK (length(previous) = 32),
    hash            BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE INDEX audit_by_vm ON audit (vm, seq) WHERE vm <> '';
CREATE INDEX audit_by_actor ON audit (issuer || '/' || subject, seq) WHERE issuer <> '';
CREATE INDEX audit_accepted ON audit (operation) WHERE outcome = 'accepted' AND operation <> '';
CREATE INDEX audit_pruned ON audit (seq) WHERE outcome = 'pruned';

-- Against mistakes. Who has the file can drop them; against those there is the chain.
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is only ever added to'); END;
-- What an event `pruned` names may go.
CREATE TRIGGER audit_is_not_removed BEFORE DELETE ON audit
WHEN NOT EXISTS (SELECT 1 FROM audit WHERE outcome = 'pruned' AND seq > OLD.seq AND CAST(detail AS INTEGER) >= OLD.seq)
BEGIN SELECT RAISE(ABORT, 'the audit trail is only ever added to'); END;
-- Also keeps an INSERT OR REPLACE from replacing.
CREATE TRIGGER audit_is_added_to_at_its_end BEFORE INSERT ON audit
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit)
BEGIN SELECT RAISE(ABORT, 'the audit trail is only ever added to'); END;

-- Who took a snapshot, '{issuer}/{subject}'; NULL for those of other tools. And what counts of its bytes: as many as it can
-- need while it is being taken, then as many as its host tells.
ALTER TABLE snapshots ADD COLUMN created_by TEXT;
ALTER TABLE snapshots ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE snapshots SET bytes = coalesce(json_extract(facts, '$.size_bytes'), 0),
    created_by = iif(json_extract(facts, '$.origin') = 'service', nullif(json_extract(facts, '$.label.actor'), ''), NULL);
CREATE INDEX snapshots_by_creator ON snapshots (created_by, bytes) WHERE created_by IS NOT NULL;
