-- How far it got: which projection belongs to which replica set, and its position for each set of keys.
CREATE TABLE IF NOT EXISTS {projections} (
    name TEXT PRIMARY KEY,
    replica_set TEXT NOT NULL REFERENCES {replica_sets},
    registered_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS {checkpoints} (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    projection TEXT NOT NULL REFERENCES {projections},
    keys INT4MULTIRANGE NOT NULL CHECK (keys OPERATOR(pg_catalog.<@) '{[0,65536)}' AND NOT pg_catalog.isempty(keys)),
    position BIGINT NOT NULL CHECK (position >= 0),
    -- The last event handled, if there is one. Another event at its position means that these are not the events that were handled.
    last_event_position BIGINT,
    last_event_id UUID,
    generation BIGINT NOT NULL DEFAULT 0,
    worker_id UUID,
    lane INT NOT NULL DEFAULT 0 CHECK (lane >= 0),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- A runner looks its checkpoints up by their owner: those of past generations, not cleaned up yet, are then not in its way.
CREATE INDEX IF NOT EXISTS {checkpoints_by_owner} ON {checkpoints} (projection, generation, worker_id);
