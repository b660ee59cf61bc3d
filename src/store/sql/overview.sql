-- The replica set $1 as one JSON text: its last generations, its workers, the checkpoints of its
-- projections and their owners. It is one snapshot; every time is an age in seconds by the server's
-- clock. It reads only the newest event and one event per projection; the other tables are small.
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
            SELECT p.name, p.desired_state, p.fault, true AS is_own,
                   {is_measured} AS is_measured, {state} AS state
            FROM {projections} p
            WHERE p.replica_set = $1
            UNION ALL
            SELECT known.name, NULL, coalesce('belongs to ' || p.replica_set, 'deleted'), false, false, 'broken'
            FROM (SELECT DISTINCT unnest(w.projections) AS name FROM {workers} w WHERE w.replica_set = $1 AND w.state <> 'stopped') known
            LEFT JOIN {projections} p USING (name) WHERE p.replica_set IS DISTINCT FROM $1
        ) p LEFT JOIN ({lags}) AS lag (projection, position, events, seconds) ON lag.projection = p.name))
