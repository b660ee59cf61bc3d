-- Replica sets, their generations and their workers.
CREATE TABLE IF NOT EXISTS {replica_sets} (
    name TEXT PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS {generations} (
    replica_set TEXT NOT NULL REFERENCES {replica_sets},
    number BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'superseded')),
    total_partitions INT NOT NULL CHECK (total_partitions > 0),
    reason TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    activated_at TIMESTAMPTZ,
    superseded_at TIMESTAMPTZ,
    PRIMARY KEY (replica_set, number)
);

CREATE TABLE IF NOT EXISTS {workers} (
    id UUID PRIMARY KEY,
    replica_set TEXT NOT NULL REFERENCES {replica_sets},
    generation BIGINT NOT NULL DEFAULT 0,
    partition_key INT NOT NULL DEFAULT -1,
    state TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'running', 'stopping', 'stopped')),
    host TEXT NOT NULL,
    pid INT NOT NULL,
    version TEXT NOT NULL,
    projections TEXT[] NOT NULL,
    -- The version of each of them, and the number of parts into which the worker cuts its share, in
    -- the same order.
    versions INT[] NOT NULL DEFAULT '{}',
    lanes INT[] NOT NULL DEFAULT '{}',
    -- The build of the program, if it says so.
    build_id TEXT,
    -- The class of the locks that its sessions hold, and the session whose lock means that it is
    -- alive. NULL if liveness relies on heartbeats alone.
    session_class INT,
    session_pid INT,
    session_lost_at TIMESTAMPTZ,
    -- For operators only: no worker relies on what another worker has written here.
    safe_head BIGINT NOT NULL DEFAULT 0,
    started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_heartbeat TIMESTAMPTZ NOT NULL DEFAULT now(),
    stopped_at TIMESTAMPTZ,
    stop_reason TEXT
) WITH (fillfactor = 50);

CREATE INDEX IF NOT EXISTS {workers_by_replica_set} ON {workers} (replica_set);
