-- How far it got: which projection belongs to which replica set, and its position for each set of keys.
CREATE TABLE IF NOT EXISTS {projections} (
    name TEXT PRIMARY KEY,
    replica_set TEXT NOT NULL REFERENCES {replica_sets},
    registered_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS {checkpoints} (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    projection TEXT NOT NULL REFERENCES {projections},
    keys INT4MULTIRANGE NOT NULL CHECK (keys <@ '{[0,65536)}' AND NOT isempty(keys)),
    position BIGINT NOT NULL,
    generation BIGINT NOT NULL DEFAULT 0,
    worker_id UUID,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE INDEX IF NOT EXISTS {checkpoints_by_projection} ON {checkpoints} (projection);
