-- How long the service has run on this file, in milliseconds of a monotonic clock, added up from time to time. What is kept for
-- a while is kept by this: a wall clock that jumps neither removes anything early nor keeps it for ever.
ALTER TABLE catalogue ADD COLUMN served_ms INTEGER NOT NULL DEFAULT 0;

-- What `served_ms` was when the operation ended; NULL while it has not.
ALTER TABLE operations ADD COLUMN ended_served_ms INTEGER;
UPDATE operations SET ended_served_ms = 0 WHERE state NOT IN ('pending', 'running');
CREATE INDEX operations_ended ON operations (ended_served_ms, seq) WHERE ended_served_ms IS NOT NULL;
