-- Appends events to one aggregate: moves its head, which is locked before any position is taken,
-- and inserts the events. It is a function, so that the server plans its statements once per
-- session, also behind a pooler, and not with each append.
--
-- Returns one row for each event, in the order given. If the aggregate is not at the expected
-- version, nothing is written, and the only row has its version and no position. An expected
-- version of NULL appends at any version.
--
-- Operators and functions are qualified, so that the caller's search path cannot replace them. The
-- function sets no path of its own: the triggers of the events table would run under it. (`unnest`
-- of several arrays is always pg_catalog's.)
CREATE OR REPLACE FUNCTION {append}(
    bounded_context TEXT, aggregate_type TEXT, aggregate_id TEXT, expected_version BIGINT,
    event_ids UUID[], event_types TEXT[], event_versions INT[], payloads BYTEA[],
    trace_ids TEXT[] DEFAULT NULL, correlation_ids TEXT[] DEFAULT NULL, causation_ids TEXT[] DEFAULT NULL, metadata JSONB[] DEFAULT NULL,
    tables TEXT DEFAULT NULL
) RETURNS TABLE (global_position BIGINT, aggregate_version BIGINT) LANGUAGE plpgsql
-- A plan is kept while the tables grow. A plan made for small tables would scan large ones until
-- the next ANALYZE.
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    added BIGINT := pg_catalog.cardinality($5);
    before BIGINT;
    stored BIGINT;
BEGIN
    IF tables OPERATOR(pg_catalog.<>) '{events} and {aggregate_heads}' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.concat('{append} appends to {events} and {aggregate_heads}, not to ', tables),
            HINT = 'Give them a schema or a prefix of their own; if the tables were renamed, apply Names::schema_sql() again.';
    END IF;
    -- Nearly always there is a head, and no event above it. To verify this is cheaper than to find
    -- the highest version.
    UPDATE {aggregate_heads} AS head
    SET aggregate_version = aggregate_version OPERATOR(pg_catalog.+) added, updated_at = pg_catalog.clock_timestamp()
    WHERE bounded_context OPERATOR(pg_catalog.=) $1 AND aggregate_type OPERATOR(pg_catalog.=) $2
      AND aggregate_id OPERATOR(pg_catalog.=) $3 AND ($4 IS NULL OR aggregate_version OPERATOR(pg_catalog.=) $4)
      AND NOT EXISTS (SELECT FROM {events} AS event
                      WHERE bounded_context OPERATOR(pg_catalog.=) $1 AND aggregate_type OPERATOR(pg_catalog.=) $2
                        AND aggregate_id OPERATOR(pg_catalog.=) $3
                        AND event.aggregate_version OPERATOR(pg_catalog.>) head.aggregate_version)
    RETURNING aggregate_version OPERATOR(pg_catalog.-) added INTO before;
    IF NOT FOUND THEN
        -- Writers that insert with plain SQL may not update the heads, and old events may have been
        -- archived: the higher version counts. Another append may create the head in between.
        INSERT INTO {aggregate_heads} AS head (bounded_context, aggregate_type, aggregate_id, aggregate_version)
        SELECT $1, $2, $3, seen.version OPERATOR(pg_catalog.+) added
        FROM (SELECT coalesce(pg_catalog.max(aggregate_version), 0) AS version FROM {events}
              WHERE bounded_context OPERATOR(pg_catalog.=) $1 AND aggregate_type OPERATOR(pg_catalog.=) $2
                AND aggregate_id OPERATOR(pg_catalog.=) $3) AS seen
        WHERE $4 IS NULL OR seen.version OPERATOR(pg_catalog.=) $4
        ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO UPDATE
        SET aggregate_version = greatest(head.aggregate_version OPERATOR(pg_catalog.+) added, excluded.aggregate_version),
            updated_at = pg_catalog.clock_timestamp()
        WHERE $4 IS NULL OR head.aggregate_version OPERATOR(pg_catalog.<=) $4
        RETURNING aggregate_version OPERATOR(pg_catalog.-) added INTO before;
        IF NOT FOUND THEN
            RETURN QUERY SELECT NULL::BIGINT, greatest(
                (SELECT pg_catalog.max(aggregate_version) FROM {events}
                 WHERE bounded_context OPERATOR(pg_catalog.=) $1 AND aggregate_type OPERATOR(pg_catalog.=) $2
                   AND aggregate_id OPERATOR(pg_catalog.=) $3),
                (SELECT aggregate_version FROM {aggregate_heads}
                 WHERE bounded_context OPERATOR(pg_catalog.=) $1 AND aggregate_type OPERATOR(pg_catalog.=) $2
                   AND aggregate_id OPERATOR(pg_catalog.=) $3),
                0);
            RETURN;
        END IF;
    END IF;
    RETURN QUERY
    INSERT INTO {events} AS inserted (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
                                      event_version, payload, trace_id, correlation_id, causation_id, metadata)
    SELECT $1, $2, $3, before OPERATOR(pg_catalog.+) event.n, event.id, event.type, event.version, event.payload, event.trace_id,
           event.correlation_id, event.causation_id, event.metadata
    FROM unnest($5, $6, $7, $8, $9, $10, $11, $12) WITH ORDINALITY
        AS event (id, type, version, payload, trace_id, correlation_id, causation_id, metadata, n)
    ORDER BY event.n
    RETURNING inserted.global_position, inserted.aggregate_version;
    GET DIAGNOSTICS stored = ROW_COUNT;
    IF stored OPERATOR(pg_catalog.<>) added THEN
        RAISE EXCEPTION USING
            ERRCODE = 'triggered_action_exception',
            MESSAGE = pg_catalog.concat(stored, ' of ', added, ' events were stored'),
            HINT = 'A trigger or a rule keeps events out of {events}: the append cannot tell where they went.';
    END IF;
END $$;
