-- What operators ask for, and the events that were not handled.
CREATE TABLE IF NOT EXISTS {commands} (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    projection TEXT NOT NULL,
    command TEXT NOT NULL CHECK (command IN ('pause', 'resume', 'rewind', 'remove', 'replay', 'discard', 'rebuild',
                                               'rebuild_aggregate', 'cancel', 'revert', 'drop_old')),
    arguments JSONB NOT NULL DEFAULT '{}',
    -- Who asked for it, in their own words, and the role that the server has authenticated.
    requested_by TEXT NOT NULL DEFAULT current_user,
    requested_as TEXT NOT NULL DEFAULT session_user,
    reason TEXT,
    requested_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- Some commands are executed in steps. 'executing': the worker named here does what must not be
    -- done under the lock of the replica set; the number of the attempt identifies it. 'executed': it
    -- has done so. A rebuild goes on: 'loading' while all workers fill the copies of the tables,
    -- 'finishing' while the worker named here switches to them.
    step TEXT CHECK (step IN ('executing', 'executed', 'loading', 'finishing')),
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

-- The rebuilds that are not finished, and the former tables that are kept.
CREATE TABLE IF NOT EXISTS {rebuilds} (
    -- The number of the command.
    id BIGINT PRIMARY KEY,
    projection TEXT NOT NULL,
    -- 'loading': its handlers fill the copies, at the rate below. 'catching_up': without a limit.
    -- 'following': the live checkpoints go no further than those of the rebuild. 'old': it is
    -- finished, and the former tables are kept.
    state TEXT NOT NULL DEFAULT 'loading' CHECK (state IN ('loading', 'catching_up', 'following', 'old')),
    -- The tables of the projection, and their copies in a schema of their own. Afterwards, the live
    -- tables and the former ones.
    table_schemas TEXT[] NOT NULL,
    tables TEXT[] NOT NULL,
    live_oids OID[] NOT NULL,
    copy_oids OID[] NOT NULL,
    copies_schema TEXT NOT NULL,
    -- How many events are handled per second, by all workers together. NULL is without a limit.
    rate INT CHECK (rate > 0),
    keep_old BOOLEAN NOT NULL DEFAULT false,
    -- Whether the content of the live tables is replaced, instead of the tables.
    copies_content BOOLEAN NOT NULL DEFAULT false,
    -- The size of the live tables when it began.
    bytes BIGINT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- Why the switch was put off, and until when.
    blocked TEXT,
    retry_at TIMESTAMPTZ
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
    -- The command that is rebuilding the rows of the aggregate. Its later events wait until that is
    -- done. If no event has failed, the id of the event is nil, and those from the position on wait.
    rebuild_id BIGINT,
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
        WHEN 'pause', 'resume', 'remove', 'cancel', 'revert', 'drop_old' THEN
            expected := 'no arguments';
            valid := cardinality(given) = 0;
        WHEN 'rewind' THEN
            expected := 'one of {"to_beginning": true}, {"to_position": 7} and {"to_time": "2026-01-31T12:00:00Z"}, and may have "repeat_effects": true';
            valid := coalesce(jsonb_typeof($3 -> 'repeat_effects'), 'boolean') = 'boolean';
            given := array_remove(given, 'repeat_effects');
            valid := valid AND CASE given[1]
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
        WHEN 'rebuild' THEN
            expected := '{"rate": 5000 or null, "keep_old": true, "copy": true, "version": 2}, each of which can be left out';
            valid := given <@ ARRAY['rate', 'keep_old', 'copy', 'version']
                AND coalesce(jsonb_typeof($3 -> 'keep_old'), 'boolean') = 'boolean'
                AND coalesce(jsonb_typeof($3 -> 'copy'), 'boolean') = 'boolean'
                AND coalesce(($3 ->> 'rate')::int4 > 0, true) AND coalesce(($3 ->> 'version')::int4 > 0, true);
        WHEN 'rebuild_aggregate' THEN
            expected := '{"aggregate": ["context", "type", "id"]}';
            valid := CASE given[1] WHEN 'aggregate' THEN CASE jsonb_typeof($3 -> 'aggregate')
                WHEN 'array' THEN jsonb_array_length($3 -> 'aggregate') = 3
            END END AND cardinality(given) = 1;
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
                HINT = 'There are pause, resume, rewind, remove, replay, discard, rebuild, rebuild_aggregate, cancel, revert and drop_old.';
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
    IF $1 LIKE '%@old' OR $1 LIKE '%@rebuild' AND $2 <> ALL (ARRAY['pause', 'resume', 'replay', 'discard']) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s is for a projection, and %L belongs to one', $2, $1),
            HINT = 'Give the name of the projection, without the part from the "@".';
    END IF;
    INSERT INTO {commands} (projection, command, arguments, requested_by, reason)
    VALUES ($1, $2, coalesce($3, '{}'), coalesce($4, current_user), $5) RETURNING id INTO number;
    RETURN number;
END $$;
