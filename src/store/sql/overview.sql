-- The replica set $1 as one JSON text: its last generations, its workers, the checkpoints of its
-- projections and their owners, the first parked aggregates and the last commands. It is one
-- snapshot; every time is an age in seconds by the server's clock. It reads only the newest event
-- and one event per projection; the other tables are small. The second column says whether a
-- projection is being rebuilt.
SELECT json_build_object(
    'newest_position', (SELECT coalesce(max(global_position), 0) FROM {events}),
    'safe_head', (SELECT coalesce(max(safe_head), 0) FROM {workers}),
    'generations', (
        SELECT coalesce(json_agg(json_build_object(
            'number', g.number,
            'state', g.state,
            'total_partitions', g.total_partitions,
            'cause', g.reason,
            'created_age_seconds', {created_age},
            'activated_age_seconds', {activated_age},
            'superseded_age_seconds', {superseded_age},
            'pause_seconds', round(extract(epoch FROM g.activated_at - g.created_at)::numeric, 3)
        ) ORDER BY g.number DESC), '[]')
        FROM (SELECT * FROM {generations} WHERE replica_set = $1 ORDER BY number DESC LIMIT {most_generations}) g),
    'workers', (
        SELECT coalesce(json_agg(json_build_object(
            'worker_id', w.id,
            'host', w.host,
            'pid', w.pid,
            'version', w.version,
            'state', w.state,
            'generation', w.generation,
            'partition', nullif(w.partition_key, -1),
            'projections', w.projections,
            'started_age_seconds', {started_age},
            'heartbeat_age_seconds', {heartbeat_age},
            'stopped_age_seconds', {stopped_age},
            'stop_reason', w.stop_reason
        ) ORDER BY w.state = 'stopped', w.partition_key = -1, w.partition_key, w.started_at, w.id), '[]')
        FROM {workers} w WHERE w.replica_set = $1
        AND (w.state <> 'stopped' OR w.stopped_at > clock_timestamp() - interval '{stopped_shown}')),
    'projections', (
        SELECT coalesce(json_agg(json_build_object(
            'name', p.name,
            'state', p.state,
            'desired_state', p.desired_state,
            'desired_age_seconds', {desired_age},
            'desired_by', p.desired_by,
            'desired_reason', p.desired_reason,
            'rewind', (
                SELECT json_build_object(
                    'command_id', k.id,
                    'step', k.step,
                    'worker_id', k.executor,
                    'attempt', k.attempt,
                    'requested_age_seconds', {requested_age})
                FROM {commands} k WHERE k.projection = p.name AND p.is_own AND k.applied_at IS NULL AND k.command = 'rewind' AND k.step IS NOT NULL
                ORDER BY k.id LIMIT 1),
            'is_replay', EXISTS (SELECT FROM {checkpoints} c WHERE c.projection = p.name AND p.is_own AND c.position < c.highest),
            'parked', (SELECT count(*) FROM {parked} k WHERE k.projection = p.name AND p.is_own),
            'pending_commands', CASE WHEN p.is_own THEN {pending} ELSE 0 END,
            'rebuild', CASE WHEN p.is_own THEN {rebuild} END,
            'old', CASE WHEN p.is_own THEN {old} END,
            'fault', p.fault,
            'position', lag.position,
            'lag_events', CASE WHEN p.is_measured THEN lag.events END,
            'lag_seconds', CASE WHEN p.is_measured THEN round(lag.seconds::numeric, 3) END,
            'checkpoints', (
                SELECT coalesce(json_agg(json_build_object(
                    'keys', c.keys::text,
                    'position', c.position,
                    'generation', c.generation,
                    'worker_id', c.worker_id,
                    'moved_age_seconds', {moved_age},
                    'state', c.state,
                    'error', c.error,
                    'attempts', c.attempts,
                    'attempt_position', c.attempt_position,
                    'attempt_event_id', c.attempt_event_id,
                    'attempted_age_seconds', {attempted_age}
                ) ORDER BY lower(c.keys)), '[]')
                FROM {checkpoints} c WHERE c.projection = p.name AND p.is_own)
        ) ORDER BY p.name), '[]')
        FROM (
            SELECT p.name, p.desired_state, p.desired_at, p.desired_by, p.desired_reason, p.fault, true AS is_own,
                   {is_measured} AS is_measured, {state} AS state
            FROM {projections} p
            WHERE p.replica_set = $1 AND p.kind = 'live'
            UNION ALL
            SELECT known.name, NULL, NULL, NULL, NULL, coalesce('belongs to ' || p.replica_set, 'deleted'), false, false, 'broken'
            FROM (SELECT DISTINCT unnest(w.projections) AS name FROM {workers} w WHERE w.replica_set = $1 AND w.state <> 'stopped') known
            LEFT JOIN {projections} p USING (name) WHERE p.replica_set IS DISTINCT FROM $1
        ) p LEFT JOIN ({lags}) AS lag (projection, position, events, seconds) ON lag.projection = p.name),
    'parked_aggregates', (
        SELECT coalesce(json_agg(json_build_object(
            'projection', k.projection,
            'bounded_context', k.bounded_context,
            'aggregate_type', k.aggregate_type,
            'aggregate_id', k.aggregate_id,
            'position', k.position,
            'event_id', k.event_id,
            'event_type', k.event_type,
            'attempts', k.attempts,
            'error', {error},
            'parked_age_seconds', {parked_age},
            'replay_requested_age_seconds', {replay_requested_age}
        ) ORDER BY k.parked_at, k.projection, k.position), '[]')
        FROM (SELECT k.* FROM {parked} k JOIN {projections} p ON p.name = k.projection AND p.replica_set = $1 AND p.kind <> 'old'
              ORDER BY k.parked_at, k.projection, k.position LIMIT {most_parked}) k),
    'commands', (
        SELECT coalesce(json_agg(json_build_object(
            'id', k.id,
            'projection', k.projection,
            'command', k.command,
            'arguments', k.arguments::text,
            'requested_by', k.requested_by,
            'requested_as', k.requested_as,
            'reason', k.reason,
            'requested_age_seconds', {requested_age},
            'step', k.step,
            'applied_age_seconds', {applied_age},
            'outcome', k.outcome,
            'result', k.result::text,
            'error', {error}
        ) ORDER BY k.id DESC), '[]')
        FROM (SELECT k.* FROM {commands} k LEFT JOIN {projections} p ON p.name = regexp_replace(k.projection, '@(rebuild|old)$', '')
              WHERE coalesce(p.replica_set, $1) = $1 ORDER BY k.id DESC LIMIT {most_commands}) k)),
    EXISTS (SELECT FROM {rebuilds} r JOIN {projections} p ON p.name = r.projection AND p.replica_set = $1 WHERE r.state <> 'old')
