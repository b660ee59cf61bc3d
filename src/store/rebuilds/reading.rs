//! What operators see of rebuilds, in SQL: one statement reads it together with the projections.

use crate::store::ages::age;
use crate::store::names::Names;

/// What is read of the rebuild of projection `p`, in SQL: the members of a
/// [`Reading`](crate::rebuilding::Reading) as JSON. NULL if there is none.
pub(crate) fn rebuild_sql(names: &Names) -> String {
    names.sql_with(
        "(SELECT json_build_object(
              'command_id', r.id,
              'state', r.state,
              'version', q.version,
              'build_id', q.build_id,
              'rate_limit', r.rate,
              'keep_old', r.keep_old,
              'copy', r.copies_content,
              'bytes', r.bytes,
              'age_seconds', {started_age},
              'from', coalesce(q.counted_from, 0),
              'newest', (SELECT coalesce(max(global_position), 0) FROM {events}),
              'parts', (SELECT coalesce(json_agg(json_build_array(
                            (SELECT sum(upper(k) - lower(k)) FROM unnest(c.keys) AS k), c.position)), '[]')
                        FROM {checkpoints} c WHERE c.projection = q.name),
              'events', (SELECT coalesce(sum(c.handled), 0) FROM {checkpoints} c WHERE c.projection = q.name),
              'workers', (SELECT count(*) FROM {workers} w CROSS JOIN LATERAL unnest(w.projections, w.versions) AS code (name, version)
                          WHERE w.replica_set = q.replica_set AND w.state <> 'stopped' AND code.name = q.base
                          AND code.version = q.version AND (q.build_id IS NULL OR q.build_id = w.build_id)),
              'parked', (SELECT count(*) FROM {parked} k WHERE k.projection = q.name),
              'is_parked_only', EXISTS ({parked_only}),
              'fault', q.fault,
              'is_paused', q.desired_state = 'paused',
              'is_live_paused', p.desired_state = 'paused',
              'is_live_rewinding', EXISTS (SELECT FROM {commands} m WHERE m.projection = p.name AND m.applied_at IS NULL
                                           AND m.command = 'rewind' AND m.step IS NOT NULL),
              'is_halted', EXISTS (SELECT FROM {checkpoints} c WHERE c.projection = q.name AND c.state = 'halted'),
              'error', failing.error,
              'failing_event', failing.attempt_event_id,
              'blocked', r.blocked)
          FROM {rebuilds} r JOIN {projections} q ON q.name = r.projection || '@rebuild'
          LEFT JOIN LATERAL (
              SELECT c.error, c.attempt_event_id FROM {checkpoints} c WHERE c.projection = q.name AND c.error IS NOT NULL
              ORDER BY c.state <> 'halted', c.position LIMIT 1) AS failing ON true
          WHERE r.projection = p.name AND r.state <> 'old')",
        &[("started_age", &age("r.started_at")), ("parked_only", &parked_only_sql(names, "r.projection"))],
    )
}

/// The former tables of projection `p` that are kept, in SQL: the members of an
/// [`OldRecord`](crate::rebuilding::OldRecord) as JSON. NULL if there are none.
pub(crate) fn old_sql(names: &Names) -> String {
    names.sql_with(
        "(SELECT json_build_object(
              'command_id', r.id,
              'schema', r.copies_schema,
              'tables', r.tables,
              'bytes', (SELECT coalesce(sum(pg_total_relation_size(kept)), 0) FROM unnest(r.copy_oids) AS kept),
              'version', q.version,
              'age_seconds', {replaced_age})
          FROM {rebuilds} r JOIN {projections} q ON q.name = r.projection || '@old'
          WHERE r.projection = p.name AND r.state = 'old')",
        &[("replaced_age", &age("q.registered_at"))],
    )
}

/// For how long the former tables of projection `p` have been kept, in SQL: seconds.
pub(crate) fn old_age_sql(names: &Names) -> String {
    names.sql_with(
        "(SELECT ({age})::float8 FROM {projections} q WHERE q.name = p.name || '@old')",
        &[("age", &age("q.registered_at"))],
    )
}

/// How many commands for projection `p`, or for its rebuild, are not applied yet, in SQL. A rebuild
/// that is in the background is left out: it is not waited for.
pub(crate) fn pending_sql(names: &Names) -> String {
    names.sql(
        "(SELECT count(*) FROM {commands} m WHERE m.projection IN (p.name, p.name || '@rebuild') AND m.applied_at IS NULL
          AND coalesce(m.step, '') NOT IN ('loading', 'finishing'))",
    )
}

/// The aggregates that the rebuild of a projection has parked, and of which the live projection has
/// handled more, in SQL. `base` is the projection's name, in SQL.
pub(super) fn parked_only_sql(names: &Names, base: &str) -> String {
    names.sql_with(
        "SELECT FROM {parked} AS theirs WHERE theirs.projection OPERATOR(pg_catalog.=) ({base} OPERATOR(pg_catalog.||) '@rebuild')
         AND NOT EXISTS (
             SELECT FROM {parked} AS ours
             WHERE ours.projection OPERATOR(pg_catalog.=) {base} AND ours.position OPERATOR(pg_catalog.<=) theirs.position
             AND ours.bounded_context OPERATOR(pg_catalog.=) theirs.bounded_context
             AND ours.aggregate_type OPERATOR(pg_catalog.=) theirs.aggregate_type
             AND ours.aggregate_id OPERATOR(pg_catalog.=) theirs.aggregate_id)",
        &[("base", &base)],
    )
}
