//! Checkpoints: how far each projection has processed the events of each set of keys, and which
//! worker owns that set.
//!
//! *Invariant.* The key sets of a projection's checkpoints are disjoint and cover the key space
//! (I5): rows are only ever made whole ([`claim`]), cut
//! ([`deal`](super::deal)) and merged
//! ([`merge`](super::fence::merge)). Positions are moved by [`fence`](super::fence) alone. Whatever
//! changes whose a row is gives it a new token.

use postgres::types::Type;
use postgres::{Client, Transaction};

use super::continuity;
use super::names::Names;
use super::registration::{Known, Registration};
use crate::error::Error;
use crate::plan::{KeySet, WorkerId};
use crate::scope::StartAt;

/// Claims the worker's projections for its replica set, and creates the checkpoint of each new one.
/// Takes over projections of a replica set that has no living worker. Refuses checkpoints above the
/// last existing position.
pub(crate) fn claim(tx: &mut Transaction<'_>, names: &Names, worker: &Registration) -> Result<(), Error> {
    let doing = "claiming the projections";
    let mut wanted: Vec<&Known> = worker.projections.iter().collect();
    // All workers use one order, so that two replica sets that claim the same names cannot
    // deadlock.
    wanted.sort_by(|a, b| a.name.cmp(&b.name));
    for Known { name, start_at } in wanted {
        let owner = owner_of(tx, names, name, worker).map_err(Error::database(doing))?;
        match owner {
            None => begin(tx, names, name, *start_at).map_err(Error::database(doing))?,
            Some((owner, _)) if owner == worker.replica_set => {}
            Some((owner, true)) => {
                return Err(Error::ProjectionClaimed {
                    projection: name.clone(),
                    owner,
                    claimant: worker.replica_set.clone(),
                });
            }
            Some((owner, false)) => {
                log::info!("projection taken over: projection={name} from={owner} by={}", worker.replica_set);
                take_over(tx, names, name, &worker.replica_set).map_err(Error::database(doing))?;
            }
        }
    }
    continuity::verify(tx, names, &worker.projections)
}

/// Returns the replica set to which a projection belongs, and whether a living worker of it knows
/// the projection. Returns `None` if the projection is new: then it now belongs to this worker's
/// replica set. Its row is locked in either case.
fn owner_of(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    worker: &Registration,
) -> Result<Option<(String, bool)>, postgres::Error> {
    let inserted = tx.execute_typed(
        &names.sql("INSERT INTO {projections} (name, replica_set) VALUES ($1, $2) ON CONFLICT DO NOTHING"),
        &[(&projection, Type::TEXT), (&worker.replica_set, Type::TEXT)],
    )?;
    if inserted == 1 {
        return Ok(None);
    }
    let sql = names.sql(
        "SELECT replica_set, EXISTS (
             SELECT FROM {workers} w WHERE w.replica_set = p.replica_set AND w.state <> 'stopped' AND p.name = ANY (w.projections)
             AND w.last_heartbeat > clock_timestamp() - $2 * interval '1 second')
         FROM {projections} p WHERE name = $1 FOR UPDATE",
    );
    let stale_after = worker.stale_worker_timeout.as_secs_f64();
    let row = tx.query_typed_one(&sql, &[(&projection, Type::TEXT), (&stale_after, Type::FLOAT8)])?;
    Ok(Some((row.get(0), row.get(1))))
}

fn begin(tx: &mut Transaction<'_>, names: &Names, projection: &str, start: StartAt) -> Result<(), postgres::Error> {
    let (newest, position) = match start {
        StartAt::Beginning => (false, 0),
        StartAt::Position(position) => (false, position),
        StartAt::End => (true, 0),
    };
    let sql = names.sql(
        "INSERT INTO {checkpoints} (projection, keys, position, last_event_position, last_event_id)
         SELECT $1, $2, start.position, event.global_position, event.event_id
         FROM (SELECT CASE WHEN $3 THEN coalesce((SELECT max(global_position) FROM {events}), 0) ELSE $4 END AS position) AS start
         LEFT JOIN {events} event ON event.global_position = start.position",
    );
    tx.execute_typed(
        &sql,
        &[
            (&projection, Type::TEXT),
            (&KeySet::all(), Type::INT4MULTI_RANGE),
            (&newest, Type::BOOL),
            (&position, Type::INT8),
        ],
    )?;
    Ok(())
}

fn take_over(tx: &mut Transaction<'_>, names: &Names, projection: &str, by: &str) -> Result<(), postgres::Error> {
    tx.execute_typed(
        &names.sql("UPDATE {projections} SET replica_set = $2 WHERE name = $1"),
        &[(&projection, Type::TEXT), (&by, Type::TEXT)],
    )?;
    tx.execute_typed(
        &names.sql("UPDATE {checkpoints} SET token = DEFAULT, worker_id = NULL, generation = 0 WHERE projection = $1"),
        &[(&projection, Type::TEXT)],
    )?;
    Ok(())
}

/// Returns all keys that a worker owns of any of these projections, in a generation.
pub(crate) fn keys_of(
    client: &mut Client,
    names: &Names,
    projections: &[Known],
    worker: WorkerId,
    generation: i64,
) -> Result<KeySet, postgres::Error> {
    let sql =
        names.sql("SELECT keys FROM {checkpoints} WHERE projection = ANY ($1) AND generation = $2 AND worker_id = $3");
    let projections = Known::names(projections);
    let rows = client
        .query_typed(&sql, &[(&projections, Type::TEXT_ARRAY), (&generation, Type::INT8), (&worker.0, Type::UUID)])?;
    Ok(rows.iter().fold(KeySet::default(), |all, row| all.union(&row.get(0))))
}

/// How far a projection of a replica set is behind, over all its workers.
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

/// Reads how far each projection of the replica set is behind.
pub(crate) fn lags(client: &mut Client, names: &Names, replica_set: &str) -> Result<Vec<Lag>, postgres::Error> {
    let rows = client.query_typed(&lags_sql(names), &[(&replica_set, Type::TEXT)])?;
    Ok(rows
        .iter()
        .map(|row| Lag { projection: row.get(0), position: row.get(1), events: row.get(2), seconds: row.get(3) })
        .collect())
}

/// The columns of [`Lag`] for each projection of the replica set `$1`, in SQL.
pub(super) fn lags_sql(names: &Names) -> String {
    names.sql(
        "SELECT c.projection, c.position, greatest(newest.position - c.position, 0),
                coalesce(extract(epoch FROM clock_timestamp() - next.created_at), 0)::float8
         FROM (SELECT projection, min(position) AS position FROM {checkpoints} GROUP BY projection) c
         JOIN {projections} p ON p.name = c.projection AND p.replica_set = $1
         CROSS JOIN (SELECT coalesce(max(global_position), 0) AS position FROM {events}) newest
         LEFT JOIN LATERAL (SELECT created_at FROM {events} e WHERE e.global_position > c.position
                            ORDER BY e.global_position LIMIT 1) next ON isfinite(next.created_at)",
    )
}

/// Returns the lowest checkpoint of these projections; `None` if they have no checkpoint.
pub(crate) fn lowest(
    client: &mut Client,
    names: &Names,
    projections: &[Known],
) -> Result<Option<i64>, postgres::Error> {
    let sql = names.sql("SELECT min(position) FROM {checkpoints} WHERE projection = ANY ($1)");
    Ok(client.query_typed_one(&sql, &[(&Known::names(projections), Type::TEXT_ARRAY)])?.get(0))
}
