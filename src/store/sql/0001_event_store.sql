-- The event store, as pupsourcing publishes it. Tables that exist already are not changed. They
-- are looked up first: CREATE TABLE IF NOT EXISTS needs the privilege to create even where there is
-- nothing to create.
DO $$ BEGIN
IF pg_catalog.to_regclass('{events}') IS NULL THEN
    CREATE TABLE {events} (
        global_position BIGSERIAL PRIMARY KEY,
        bounded_context TEXT NOT NULL,
        aggregate_type TEXT NOT NULL,
        aggregate_id TEXT NOT NULL,
        aggregate_version BIGINT NOT NULL,
        event_id UUID NOT NULL UNIQUE,
        event_type TEXT NOT NULL,
        event_version INT NOT NULL DEFAULT 1,
        payload BYTEA NOT NULL,
        trace_id TEXT,
        correlation_id TEXT,
        causation_id TEXT,
        metadata JSONB,
        created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
        UNIQUE (bounded_context, aggregate_type, aggregate_id, aggregate_version)
    );
END IF;
IF pg_catalog.to_regclass('{aggregate_heads}') IS NULL THEN
    CREATE TABLE {aggregate_heads} (
        bounded_context TEXT NOT NULL,
        aggregate_type TEXT NOT NULL,
        aggregate_id TEXT NOT NULL,
        aggregate_version BIGINT NOT NULL,
        updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
        PRIMARY KEY (bounded_context, aggregate_type, aggregate_id)
    );
END IF;
END $$;
