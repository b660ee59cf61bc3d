-- The projections of the replica set $1, or all of them, for operators: one row each.
SELECT p.name, p.replica_set, {state} AS state, p.desired_state, p.desired_at, p.desired_by, p.desired_reason, p.fault,
       ARRAY(SELECT DISTINCT w.version FROM {workers} w
             WHERE w.replica_set = p.replica_set AND w.state <> 'stopped' AND p.name = ANY (w.projections)
             ORDER BY w.version) AS versions,
       done.workers, lag.position,
       CASE WHEN {is_measured} THEN lag.events END AS lag_events,
       CASE WHEN {is_measured} THEN round(lag.seconds::numeric, 3)::float8 END AS lag_seconds,
       done.handled,
       (SELECT count(*) FROM {parked} k WHERE k.projection = p.name) AS parked,
       {pending} AS pending_commands,
       {rebuild} AS rebuild,
       {old} AS old,
       failing.error, failing.attempt_event_id AS failing_event
FROM {projections} p
LEFT JOIN ({lags}) AS lag (projection, position, events, seconds) ON lag.projection = p.name
CROSS JOIN LATERAL (
    SELECT count(DISTINCT c.worker_id) AS workers, coalesce(sum(c.handled), 0)::bigint AS handled
    FROM {checkpoints} c WHERE c.projection = p.name) AS done
LEFT JOIN LATERAL (
    SELECT c.error, c.attempt_event_id FROM {checkpoints} c
    WHERE c.projection = p.name AND c.error IS NOT NULL
    ORDER BY c.state <> 'halted', c.position LIMIT 1) AS failing ON true
WHERE {which} AND p.kind = 'live'
ORDER BY p.name
