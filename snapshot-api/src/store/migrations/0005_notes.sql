-- What a person should know of an operation that succeeded: a JSON array; NULL where there is nothing.
ALTER TABLE operations ADD COLUMN notes TEXT;
