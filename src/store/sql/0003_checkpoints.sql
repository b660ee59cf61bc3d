-- Progress: which replica set each projection belongs to, and its position for each set of keys.
CREATE TABLE IF NOT EXISTS {projections} (
    name TEXT PRIMARY KEY,
    -- While a projection is rebuilt, the rebuild has a row and checkpoints of its own, as has the
    -- former state that is kept after the switch. The suffix of the name tells them apart.
    kind TEXT NOT NULL GENERATED ALWAYS AS (CASE WHEN name LIKE '%@rebuild' THEN 'rebuild' WHEN name LIKE '%@old' THEN 'old'
                                                 ELSE 'live' END) STORED,
    -- The name of the projection in the code.
    base TEXT NOT NULL GENERATED ALWAYS AS (pg_catalog.regexp_replace(name, '@(rebuild|old)$', '')) STORED,
    -- The version of the code that may handle its events, and the build of the program, if only
    -- that one may.
    version INT NOT NULL DEFAULT 1,
    build_id TEXT,
    replica_set TEXT NOT NULL REFERENCES {replica_sets},
    registered_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- Which events it wants, as a worker last declared it: lists of names, and an object that the
    -- metadata contains. What is missing is not restricted.
    scope JSONB NOT NULL DEFAULT '{}',
    -- The names of the tables that it writes, without a schema, if it says so.
    tables TEXT[] NOT NULL DEFAULT '{}',
    -- The desired state, with who wanted it, when and why; and what it was when the keys were last
    -- distributed to workers. While a command clears the read model, the latter is 'paused'.
    desired_state TEXT NOT NULL DEFAULT 'running' CHECK (desired_state IN ('running', 'paused')),
    desired_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    desired_by TEXT,
    desired_reason TEXT,
    dealt_state TEXT NOT NULL DEFAULT 'running' CHECK (dealt_state IN ('running', 'paused')),
    -- The number of the last distribution; no number is used twice. A runner that knows another
    -- number has to reload its checkpoints.
    deal BIGINT GENERATED ALWAYS AS IDENTITY,
    -- A digest of which workers owned which keys right after that distribution. If it differs, the
    -- checkpoints were changed by hand.
    dealt_as BIGINT,
    -- The fault for which the keys are distributed to no worker: the checkpoints were changed by
    -- hand.
    fault TEXT,
    -- Events above this position are counted when they are handled. NULL if the count begins again
    -- with the next distribution, because the scope has changed.
    counted_from BIGINT,
    -- When all keys had come to where the newest event was, for the first time since the start, the
    -- last rewind or the last switch. NULL until then.
    caught_up_at TIMESTAMPTZ
);

CREATE TABLE IF NOT EXISTS {checkpoints} (
    -- Identifies the row, in the state in which a worker loaded it: every change that gives the row
    -- to another worker, or moves its position without handling events, gives it a new token. No
    -- token is used twice.
    token BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    projection TEXT NOT NULL REFERENCES {projections},
    keys INT4MULTIRANGE NOT NULL CHECK (keys OPERATOR(pg_catalog.<@) {all_keys} AND NOT pg_catalog.isempty(keys)),
    position BIGINT NOT NULL CHECK (position >= 0),
    -- The highest position that any of the keys ever had. Up to it, a handler is told that events
    -- are handled again.
    highest BIGINT NOT NULL DEFAULT 0,
    -- How many events above the projection's counted_from were handled. When keys are distributed,
    -- one of the new rows gets the whole number.
    handled BIGINT NOT NULL DEFAULT 0,
    -- The last event handled, if there is one. Another event at its position means that these are
    -- not the events that were handled.
    last_event_position BIGINT,
    last_event_id UUID,
    generation BIGINT NOT NULL DEFAULT 0,
    worker_id UUID,
    lane INT NOT NULL DEFAULT 0 CHECK (lane >= 0),
    -- What the owner reports about its work, for everyone to read.
    state TEXT NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'retrying', 'halted')),
    error TEXT,
    -- How many attempts at the next event have failed, and the event that is being attempted. A
    -- recorded event that is still there when the row is loaded means that the attempt ended
    -- together with its session, its process or the server.
    attempts INT NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    attempt_position BIGINT,
    attempt_event_id UUID,
    attempted_at TIMESTAMPTZ,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- A runner looks up its checkpoints by their owner. With this index it does not read those of past
-- generations that have not been cleaned up yet.
CREATE INDEX IF NOT EXISTS {checkpoints_by_owner} ON {checkpoints} (projection, generation, worker_id);
