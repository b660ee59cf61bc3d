-- How far projections are with what callers wait for. A question is a projection together with
-- events, by position and id; or with a position alone, which means every key up to there. The four
-- parameters are lists of the same length: number of the question, projection, position, event id.
--
-- The result has a row for each question and aggregate. One snapshot decides everything. It is
-- executed on a connection of the application, so each function and operator is qualified.
WITH served AS MATERIALIZED (
    -- A worker counts for some time after it has stopped, because another one may be about to take
    -- its place. A silent worker counts while its session holds its lock.
    SELECT DISTINCT w.replica_set, known.name
    FROM {workers} w CROSS JOIN LATERAL pg_catalog.unnest(w.projections) AS known (name)
    WHERE CASE WHEN w.state OPERATOR(pg_catalog.=) 'stopped'
               THEN w.stopped_at OPERATOR(pg_catalog.>) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '{grace}'::pg_catalog.interval)
               ELSE w.last_heartbeat OPERATOR(pg_catalog.>) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-)
                        CASE WHEN w.session_class IS NULL THEN '{silence}' ELSE '{grace}' END::pg_catalog.interval)
                    OR EXISTS (SELECT FROM pg_catalog.pg_locks l
                               WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' AND l.granted AND l.objsubid OPERATOR(pg_catalog.=) 2
                                 AND l.pid OPERATOR(pg_catalog.=) w.session_pid
                                 AND l.classid OPERATOR(pg_catalog.=) w.session_class::pg_catalog.oid
                                 AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d
                                     WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()))
          END
), clearing AS MATERIALIZED (
    -- A rewind that clears the read model distributes the keys again, whatever the state was.
    SELECT DISTINCT m.projection FROM {commands} m WHERE m.command OPERATOR(pg_catalog.=) 'rewind' AND m.step IS NOT NULL AND m.applied_at IS NULL
), target AS MATERIALIZED (
    SELECT q.number, q.projection, e.bounded_context, e.aggregate_type, e.aggregate_id, {event_key} AS key,
           pg_catalog.bool_and(q.event_id IS NULL OR e.global_position IS NOT NULL) AS is_visible,
           -- No position: no event is within the scope.
           pg_catalog.max(CASE WHEN q.event_id IS NULL OR {in_scope} THEN q.position END) AS position
    FROM unnest($1::pg_catalog.int4[], $2::pg_catalog.text[], $3::pg_catalog.int8[], $4::pg_catalog.uuid[])
        AS q (number, projection, position, event_id)
    LEFT JOIN {projections} p ON p.name OPERATOR(pg_catalog.=) q.projection
    LEFT JOIN {events} e ON e.global_position OPERATOR(pg_catalog.=) q.position AND e.event_id OPERATOR(pg_catalog.=) q.event_id
    GROUP BY q.number, q.projection, e.bounded_context, e.aggregate_type, e.aggregate_id
)
SELECT t.number,
       CASE WHEN p.name IS NULL THEN 'unknown'
            WHEN NOT t.is_visible THEN 'invisible'
            WHEN t.position IS NULL OR k.position IS NULL AND c.position OPERATOR(pg_catalog.>=) t.position THEN 'done'
            -- A replay that is requested may be about to handle it.
            WHEN k.replay_requested_at IS NULL AND k.position IS NOT NULL THEN 'parked'
            WHEN clearing.projection IS NOT NULL AND served.name IS NOT NULL THEN 'behind'
            WHEN p.fault IS NOT NULL THEN 'broken'
            WHEN p.desired_state OPERATOR(pg_catalog.=) 'paused' THEN 'paused'
            WHEN served.name IS NULL THEN 'no worker'
            WHEN c.halted IS NOT NULL THEN 'halted'
            ELSE 'behind' END,
       t.position, c.position, p.fault, p.desired_by, p.desired_reason, c.halted,
       k.bounded_context, k.aggregate_type, k.aggregate_id, k.error, {place}
FROM target t
LEFT JOIN {projections} p ON p.name OPERATOR(pg_catalog.=) t.projection
LEFT JOIN served ON served.replica_set OPERATOR(pg_catalog.=) p.replica_set AND served.name OPERATOR(pg_catalog.=) p.name
LEFT JOIN clearing ON clearing.projection OPERATOR(pg_catalog.=) p.name
CROSS JOIN LATERAL (
    SELECT pg_catalog.min(c.position),
           -- A report from before its owner started does not count: the event may be tried again at
           -- any moment.
           pg_catalog.max(coalesce(c.error, 'for an unknown reason')) FILTER (
               WHERE c.state OPERATOR(pg_catalog.=) 'halted' AND c.position OPERATOR(pg_catalog.<) t.position
                 AND NOT EXISTS (SELECT FROM {workers} w WHERE w.id OPERATOR(pg_catalog.=) c.worker_id
                                 AND w.started_at OPERATOR(pg_catalog.>) c.attempted_at))
    FROM {checkpoints} c
    WHERE c.projection OPERATOR(pg_catalog.=) t.projection
      AND (t.key IS NULL OR c.keys OPERATOR(pg_catalog.@>) t.key)) AS c (position, halted)
LEFT JOIN LATERAL (
    SELECT k.bounded_context, k.aggregate_type, k.aggregate_id, k.position, k.error, k.replay_requested_at FROM {parked} k
    WHERE k.projection OPERATOR(pg_catalog.=) t.projection AND k.bounded_context OPERATOR(pg_catalog.=) t.bounded_context
      AND k.aggregate_type OPERATOR(pg_catalog.=) t.aggregate_type AND k.aggregate_id OPERATOR(pg_catalog.=) t.aggregate_id
      AND k.position OPERATOR(pg_catalog.<=) t.position
    UNION ALL
    (SELECT k.bounded_context, k.aggregate_type, k.aggregate_id, k.position, k.error, k.replay_requested_at FROM {parked} k
     WHERE t.key IS NULL AND k.projection OPERATOR(pg_catalog.=) t.projection AND k.position OPERATOR(pg_catalog.<=) t.position
     ORDER BY k.replay_requested_at IS NOT NULL, k.position LIMIT 1)) AS k ON true
ORDER BY t.number
