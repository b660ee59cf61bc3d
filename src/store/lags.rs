//! How far the projections of a replica set are behind, and what operators have to know of them.

use postgres::Client;
use postgres::types::{Json, Type};

use super::names::Names;
use super::rebuilds;
use crate::metrics::{Condition as ShownCondition, Lag as Shown, ReplicaSetMetrics};
use crate::plan::WorkerId;
use crate::rebuilding::Reading;

/// How far a projection is behind, over all workers of its replica set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lag {
    pub(crate) projection: String,
    /// Its lowest checkpoint.
    pub(crate) position: i64,
    /// The newest visible position minus the lowest checkpoint.
    pub(crate) events: i64,
    /// The age of the first event above the lowest checkpoint, by the server's clock; 0 if there is
    /// none, or if it has no time.
    pub(crate) seconds: f64,
}

/// What operators have to know of a projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) projection: String,
    /// Whether an operator wants it to be paused.
    pub(crate) is_paused: bool,
    /// Whether a command clears its read model, or what it had handled before is not handled again
    /// yet.
    pub(crate) is_rewinding: bool,
    /// How many aggregates are parked.
    pub(crate) parked: i64,
    /// How many commands are not applied yet.
    pub(crate) pending: i64,
}

/// The lags of a replica set's projections.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Lags {
    /// The lags of the projections that its workers process or should process.
    pub(crate) measured: Vec<Lag>,
    /// How many projections no living worker knows. They are not behind: no worker wants to
    /// process them.
    pub(crate) orphans: i64,
    /// All projections of the replica set.
    pub(crate) conditions: Vec<Condition>,
    /// The rebuilds that are in progress, by the name of the projection.
    pub(crate) rebuilds: Vec<(String, Reading)>,
    /// For how many seconds the former tables of projections have been kept.
    pub(crate) old: Vec<(String, f64)>,
    /// Whether this worker reports what concerns the whole replica set: one of the running workers
    /// does.
    pub(crate) is_speaker: bool,
}

impl Lags {
    /// Shows them in the metrics, in place of those that were shown before.
    pub(crate) fn show(&self, metrics: &ReplicaSetMetrics) {
        metrics.set_lags(self.measured.iter().map(|lag| Shown {
            projection: &lag.projection,
            position: lag.position,
            events: lag.events,
            seconds: lag.seconds,
        }));
        metrics.orphaned_projections.set(self.orphans);
        metrics.set_conditions(&self.conditions.iter().map(|condition| ShownCondition {
            projection: &condition.projection,
            is_paused: condition.is_paused,
            is_rewinding: condition.is_rewinding,
            parked: condition.parked,
            pending: condition.pending,
        }));
        metrics.set_old_tables(self.old.iter().map(|(projection, seconds)| (projection.as_str(), *seconds)));
    }
}

/// Reads how far each projection of the replica set is behind. A projection with a fault has no
/// lag: its positions mean nothing. A rebuild is not behind: it has a progress.
pub(crate) fn load(
    client: &mut Client,
    names: &Names,
    replica_set: &str,
    worker: WorkerId,
) -> Result<Lags, postgres::Error> {
    let sql = names.sql_with(
        "SELECT p.name, lag.position, lag.events, lag.seconds, {is_orphan}, p.fault IS NOT NULL, p.desired_state = 'paused',
                EXISTS (SELECT FROM {commands} m WHERE m.projection = p.name AND m.applied_at IS NULL AND m.command = 'rewind' AND m.step IS NOT NULL)
                OR EXISTS (SELECT FROM {checkpoints} c WHERE c.projection = p.name AND c.position < c.highest),
                (SELECT count(*) FROM {parked} k WHERE k.projection = p.name),
                {pending}, {rebuild}, {old_age},
                $2 = (SELECT w.id FROM {workers} w WHERE w.replica_set = $1 AND w.state = 'running' ORDER BY w.partition_key LIMIT 1)
         FROM {projections} p
         LEFT JOIN ({lags}) AS lag (projection, position, events, seconds) ON lag.projection = p.name
         WHERE p.replica_set = $1 AND p.kind = 'live'",
        &[
            ("lags", &sql(names, "p.replica_set = $1")),
            ("is_orphan", &is_orphan_sql(names)),
            ("pending", &rebuilds::pending_sql(names)),
            ("rebuild", &rebuilds::rebuild_sql(names)),
            ("old_age", &rebuilds::old_age_sql(names)),
        ],
    );
    let mut lags = Lags::default();
    for row in client.query_typed(&sql, &[(&replica_set, Type::TEXT), (&worker.0, Type::UUID)])? {
        let (projection, is_orphan, is_broken): (String, bool, bool) = (row.get(0), row.get(4), row.get(5));
        lags.conditions.push(Condition {
            projection: projection.clone(),
            is_paused: row.get(6),
            is_rewinding: row.get(7),
            parked: row.get(8),
            pending: row.get(9),
        });
        if let Some(Json(reading)) = row.try_get(10)? {
            lags.rebuilds.push((projection.clone(), reading));
        }
        lags.old.extend(row.get::<_, Option<f64>>(11).map(|age| (projection.clone(), age)));
        lags.is_speaker |= row.get::<_, Option<bool>>(12).unwrap_or(false);
        if is_broken {
            continue;
        }
        if is_orphan {
            lags.orphans += 1;
        // Without checkpoints there is no position.
        } else if let Some(position) = row.get(1) {
            lags.measured.push(Lag { projection, position, events: row.get(2), seconds: row.get(3) });
        }
    }
    Ok(lags)
}

/// Projection, position, lag in events and in seconds for each live projection `p` that
/// meets a condition and has checkpoints, in SQL.
pub(super) fn sql(names: &Names, which: &str) -> String {
    names.sql_with(
        "SELECT c.projection, c.position, greatest(newest.position - c.position, 0),
                greatest(coalesce(extract(epoch FROM clock_timestamp() - next.created_at), 0), 0)::float8
         FROM (SELECT projection, min(position) AS position FROM {checkpoints} GROUP BY projection) c
         JOIN {projections} p ON p.name = c.projection AND p.kind = 'live' AND {which}
         CROSS JOIN (SELECT coalesce(max(global_position), 0) AS position FROM {events}) newest
         LEFT JOIN LATERAL (SELECT created_at FROM {events} e WHERE e.global_position > c.position
                            ORDER BY e.global_position LIMIT 1) next ON isfinite(next.created_at)",
        &[("which", &which)],
    )
}

/// Whether no living worker of its replica set knows projection `p`, in SQL.
pub(super) fn is_orphan_sql(names: &Names) -> String {
    names.sql(
        "NOT EXISTS (SELECT FROM {workers} w WHERE w.replica_set = p.replica_set AND w.state <> 'stopped'
                     AND p.name = ANY (w.projections))",
    )
}

/// The state of projection `p` for people, in SQL. A pause hides what the owners have reported
/// before: it is kept, and counts again when the projection is resumed.
pub(super) fn state_sql(names: &Names) -> String {
    names.sql_with(
        "CASE WHEN {is_served} AND {is_orphan} THEN 'orphaned'
              WHEN p.fault IS NOT NULL THEN 'broken'
              WHEN NOT {is_served} THEN 'stopped'
              WHEN p.dealt_state = 'paused' THEN 'paused'
              ELSE coalesce((SELECT CASE max(CASE c.state WHEN 'halted' THEN 2 WHEN 'retrying' THEN 1 END)
                                         WHEN 2 THEN 'halted' WHEN 1 THEN 'retrying' END
                             FROM {checkpoints} c WHERE c.projection = p.name), p.dealt_state) END",
        &[("is_served", &is_served_sql(names)), ("is_orphan", &is_orphan_sql(names))],
    )
}

/// Whether the lag of projection `p` means anything, in SQL: a fault makes its positions
/// meaningless, and what no living worker knows is not behind.
pub(super) fn is_measured_sql(names: &Names) -> String {
    names.sql_with(
        "(p.fault IS NULL AND NOT ({is_served} AND {is_orphan}))",
        &[("is_served", &is_served_sql(names)), ("is_orphan", &is_orphan_sql(names))],
    )
}

/// Whether a worker of the replica set of projection `p` runs, in SQL.
fn is_served_sql(names: &Names) -> String {
    names.sql("EXISTS (SELECT FROM {workers} w WHERE w.replica_set = p.replica_set AND w.state <> 'stopped')")
}
