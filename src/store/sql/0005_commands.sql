-- What operators ask for, and the events that were not handled.
CREATE TABLE IF NOT EXISTS {commands} (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    projection TEXT NOT NULL,
    command TEXT NOT NULL CHECK (command IN ('pause', 'resume', 'rewind', 'remove', 'replay', 'discard')),
    arguments JSONB NOT NULL DEFAULT '{}',
    -- Who asked for it, in their own words, and the role that the server has authenticated.
    requested_by TEXT NOT NULL DEFAULT current_user,
    requested_as TEXT NOT NULL DEFAULT session_user,
    reason TEXT,
    requested_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- A rewind is executed in steps: the worker named here clears the read model, then the keys are
    -- distributed again. The number of the attempt identifies it.
    step TEXT CHECK (step IN ('clearing', 'cleared')),
    executor UUID,
    attempt INT NOT NULL DEFAULT 0,
    -- NULL until the command has taken effect, or has turned out to be impossible.
    applied_at TIMESTAMPTZ,
    outcome TEXT CHECK (outcome IN ('done', 'refused', 'failed')),
    -- What the command has done, for example at which position the projection is paused.
    result JSONB,
    error TEXT,
    CHECK ((applied_at IS NULL) = (outcome IS NULL))
);

CREATE INDEX IF NOT EXISTS {commands_pending} ON {commands} (id) WHERE applied_at IS NULL;

-- The aggregates whose events a projection does not handle, because one of them has failed.
CREATE TABLE IF NOT EXISTS {parked} (
    projection TEXT NOT NULL REFERENCES {projections},
    bounded_context TEXT NOT NULL,
    aggregate_type TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    -- The key of the aggregate's events.
    key INT NOT NULL,
    -- The first event that was not handled, and fails. Up to the checkpoint of the key, the later
    -- events of the aggregate wait, too.
    position BIGINT NOT NULL,
    event_id UUID NOT NULL,
    event_type TEXT NOT NULL,
    attempts INT NOT NULL,
    -- The last error, and the last three with their times, newest first.
    error TEXT NOT NULL,
    errors JSONB NOT NULL DEFAULT '[]',
    parked_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    replay_requested_at TIMESTAMPTZ,
    -- How many replays have begun since the last one that ended by itself.
    replays_begun INT NOT NULL DEFAULT 0,
    -- The highest position that the key's checkpoint had had when the aggregate was parked. Events
    -- up to it may have been handled before a rewind.
    highest BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (projection, bounded_context, aggregate_type, aggregate_id)
);

-- The events that a person has decided not to handle.
CREATE TABLE IF NOT EXISTS {discarded} (
    projection TEXT NOT NULL REFERENCES {projections},
    event_id UUID NOT NULL,
    bounded_context TEXT NOT NULL,
    aggregate_type TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    key INT NOT NULL,
    position BIGINT NOT NULL,
    event_type TEXT NOT NULL,
    -- Why it failed, if it was tried.
    error TEXT,
    discarded_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    command_id BIGINT NOT NULL,
    discarded_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (projection, event_id)
);

-- Records a command for a projection, and returns its number. A worker of the projection's replica
-- set applies it within its poll_interval, and records the outcome in the table of commands. What
-- can be refused without knowing the state of the projection is refused here.
--
-- It runs with the privileges of the caller, so the right to insert into the table decides who may
-- command. It sets a search path of its own, so that the caller's cannot replace a function or an
-- operator, such as the one that CASE uses.
CREATE OR REPLACE FUNCTION {command}(
    projection TEXT, command TEXT, arguments JSONB DEFAULT '{}', requested_by TEXT DEFAULT current_user, reason TEXT DEFAULT NULL
) RETURNS BIGINT LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    is_object BOOLEAN := $3 IS NULL OR jsonb_typeof($3) = 'object';
    given TEXT[] := ARRAY(SELECT jsonb_object_keys(CASE WHEN is_object THEN $3 END));
    valid BOOLEAN;
    expected TEXT;
    number BIGINT;
BEGIN
    CASE $2
        WHEN 'pause', 'resume', 'remove' THEN
            expected := 'no arguments';
            valid := cardinality(given) = 0;
        WHEN 'rewind' THEN
            expected := 'one of {"to_beginning": true}, {"to_position": 7} and {"to_time": "2026-01-31T12:00:00Z"}';
            valid := CASE given[1]
                WHEN 'to_beginning' THEN ($3 -> 'to_beginning') = 'true'::jsonb
                WHEN 'to_position' THEN ($3 ->> 'to_position')::int8 >= 0
                WHEN 'to_time' THEN isfinite(($3 ->> 'to_time')::timestamptz)
            END AND cardinality(given) = 1;
        WHEN 'replay' THEN
            expected := 'one of {"all": true}, {"aggregate": ["context", "type", "id"]} and {"error_like": "%pattern%"}';
            valid := CASE given[1]
                WHEN 'all' THEN ($3 -> 'all') = 'true'::jsonb
                WHEN 'aggregate' THEN CASE jsonb_typeof($3 -> 'aggregate')
                    WHEN 'array' THEN jsonb_array_length($3 -> 'aggregate') = 3
                END
                WHEN 'error_like' THEN jsonb_typeof($3 -> 'error_like') = 'string'
            END AND cardinality(given) = 1;
        WHEN 'discard' THEN
            expected := '{"event": "the id of the event"}';
            valid := CASE given[1]
                WHEN 'event' THEN ($3 ->> 'event')::uuid IS NOT NULL
            END AND cardinality(given) = 1;
            IF reason IS NULL OR btrim(reason) = '' THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                    MESSAGE = 'discard needs a reason', HINT = 'Say why the event is not to be handled.';
            END IF;
        ELSE
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('there is no command %L', $2),
                HINT = 'There are pause, resume, rewind, remove, replay and discard.';
    END CASE;
    IF valid IS NOT TRUE OR NOT is_object THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s cannot have the arguments %s', $2, $3), HINT = concat('It takes ', expected, '.');
    END IF;
    IF NOT EXISTS (SELECT FROM {projections} AS known WHERE known.name = $1) THEN
        RAISE EXCEPTION USING ERRCODE = 'no_data_found',
            MESSAGE = format('no worker has ever registered a projection %L', $1),
            HINT = 'The names of all projections are in {projections}.';
    END IF;
    INSERT INTO {commands} (projection, command, arguments, requested_by, reason)
    VALUES ($1, $2, coalesce($3, '{}'), coalesce($4, current_user), $5) RETURNING id INTO number;
    RETURN number;
END $$;
