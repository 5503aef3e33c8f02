-- How long the guest was expected to stand still, in milliseconds, by the plan that the host took on; NULL where it was not to.
ALTER TABLE operations ADD COLUMN predicted_pause_ms INTEGER;
