//! How far projections have come towards a position, over all workers.

use postgres::types::Type;
use postgres::{Client, Row};

use super::names::Names;
use super::registration::Known;
use crate::plan::{DesiredState, WorkerId};

/// One projection, as its checkpoints show it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standing {
    pub(crate) projection: String,
    /// Its lowest checkpoint; `None` if it has none.
    pub(crate) position: Option<i64>,
    /// How many positions are left up to the goal, on average over its keys.
    pub(crate) left: f64,
    /// The error at which any worker has halted it before the goal since this worker registered.
    /// Earlier reports do not count, because those attempts may be about to be repeated.
    pub(crate) halted: Option<String>,
    pub(crate) is_paused: bool,
    /// Why no worker processes it although this one runs.
    pub(crate) fault: Option<String>,
    /// The version of the live read model, if no living worker has it and no rebuild is pending.
    pub(crate) lacking: Option<i32>,
}

/// Reads how far these projections have come towards `goal`.
pub(crate) fn load(
    client: &mut Client,
    names: &Names,
    projections: &[Known],
    worker: WorkerId,
    goal: i64,
) -> Result<Vec<Standing>, postgres::Error> {
    let sql = names.sql(
        "SELECT known.name, at.position, at.left, at.halted, p.desired_state, CASE WHEN w.state = 'running' THEN p.fault END,
                CASE WHEN w.state = 'running'
                     AND NOT EXISTS (SELECT FROM {workers} o WHERE o.replica_set = p.replica_set AND o.state <> 'stopped'
                                     AND p.name = ANY (o.projections)
                                     AND coalesce(o.versions[array_position(o.projections, p.name)], 1) = p.version)
                     AND NOT EXISTS (SELECT FROM {commands} k WHERE k.projection = p.name AND k.command = 'rebuild' AND k.applied_at IS NULL)
                THEN p.version END
         FROM unnest($1::text[]) AS known (name)
         LEFT JOIN {projections} p USING (name)
         LEFT JOIN {workers} w ON w.id = $2
         CROSS JOIN LATERAL (
             SELECT min(c.position) AS position,
                    coalesce(sum(greatest($3 - c.position, 0) * keys.share), 0)::float8 AS left,
                    max(coalesce(c.error, 'for an unknown reason')) FILTER (
                        WHERE c.state = 'halted' AND c.position < $3 AND c.attempted_at >= w.started_at) AS halted
             FROM {checkpoints} c
             CROSS JOIN LATERAL (SELECT sum(upper(piece) - lower(piece))::float8 / {key_space} AS share
                                 FROM unnest(c.keys) AS piece) AS keys
             WHERE c.projection = known.name) AS at",
    );
    let rows = client.query_typed(
        &sql,
        &[(&Known::names(projections), Type::TEXT_ARRAY), (&worker.0, Type::UUID), (&goal, Type::INT8)],
    )?;
    Ok(rows.iter().map(standing).collect())
}

fn standing(row: &Row) -> Standing {
    let desired: Option<&str> = row.get(4);
    Standing {
        projection: row.get(0),
        position: row.get(1),
        left: row.get(2),
        halted: row.get(3),
        is_paused: desired == Some(DesiredState::Paused.as_str()),
        fault: row.get(5),
        lacking: row.get(6),
    }
}
