//! Checkpoints: how far each projection got for each set of keys, and whose they are.
//!
//! *Invariant.* The key sets of a projection's checkpoints are disjoint and cover the key space
//! (I5): rows are only ever made whole ([`claim`]), cut ([`recut`]) and merged
//! ([`merge`](super::fence::merge)). Positions are moved by [`fence`](super::fence) alone.

use postgres::types::Type;
use postgres::{Client, Transaction};

use super::continuity;
use super::names::Names;
use super::registration::{Known, Registration};
use crate::error::Error;
use crate::plan::KeySet;
use crate::projection::StartAt;

/// Claims the worker's projections for its replica set and makes the checkpoint of each new one. Takes over what belongs to a replica
/// set none of whose workers lives. Refuses checkpoints above the last position there is.
pub(crate) fn claim(tx: &mut Transaction<'_>, names: &Names, worker: &Registration) -> Result<(), Error> {
    let doing = "claiming the projections";
    let mut wanted: Vec<&Known> = worker.projections.iter().collect();
    // One order for everybody, so that two replica sets which claim the same names cannot deadlock.
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

/// The replica set a projection belongs to and whether a worker of it that knows the projection lives; `None` if it is new, in
/// which case it now belongs to this worker's replica set. Its row is locked either way.
fn owner_of(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    worker: &Registration,
) -> Result<Option<(String, bool)>, postgres::Error> {
    let inserted = tx.execute_typed(
        &format!("INSERT INTO {} (name, replica_set) VALUES ($1, $2) ON CONFLICT DO NOTHING", names.projections()),
        &[(&projection, Type::TEXT), (&worker.replica_set, Type::TEXT)],
    )?;
    if inserted == 1 {
        return Ok(None);
    }
    let sql = format!(
        "SELECT replica_set, EXISTS (
             SELECT FROM {} w WHERE w.replica_set = p.replica_set AND w.state <> 'stopped' AND p.name = ANY (w.projections)
             AND w.last_heartbeat > clock_timestamp() - $2 * interval '1 second')
         FROM {} p WHERE name = $1 FOR UPDATE",
        names.workers(),
        names.projections()
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
    let sql = format!(
        "INSERT INTO {checkpoints} (projection, keys, position, last_event_position, last_event_id)
         SELECT $1, $2, start.position, event.global_position, event.event_id
         FROM (SELECT CASE WHEN $3 THEN coalesce((SELECT max(global_position) FROM {events}), 0) ELSE $4 END AS position) AS start
         LEFT JOIN {events} event ON event.global_position = start.position",
        checkpoints = names.checkpoints(),
        events = names.events()
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
        &format!("UPDATE {} SET replica_set = $2 WHERE name = $1", names.projections()),
        &[(&projection, Type::TEXT), (&by, Type::TEXT)],
    )?;
    tx.execute_typed(
        &format!("UPDATE {} SET worker_id = NULL, generation = 0 WHERE projection = $1", names.checkpoints()),
        &[(&projection, Type::TEXT)],
    )?;
    Ok(())
}

/// Cuts the checkpoints of a replica set's projections for a generation: each old row is intersected with each new partition. A
/// projection's keys are dealt among the members that know it, in the order of their partitions, and what a member gets among its lanes;
/// a projection that nobody knows keeps its rows, with no owner. No position is touched: rows of one lane at one position become one row,
/// others stay apart. Of several rows' last events, the last one is kept.
pub(crate) fn recut(tx: &mut Transaction<'_>, names: &Names, replica_set: &str, generation: i64) -> Result<(), Error> {
    let doing = "cutting the checkpoints";
    let (checkpoints, projections) = (names.checkpoints(), names.projections());
    // First the locks, in one order. A batch of the generation before that is just committing is waited for here, so that the statement
    // below, which has a snapshot of its own, sees its position.
    tx.query_typed(
        &format!(
            "SELECT FROM {checkpoints} WHERE projection IN (SELECT name FROM {projections} WHERE replica_set = $1)
             ORDER BY id FOR UPDATE"
        ),
        &[(&replica_set, Type::TEXT)],
    )
    .map_err(Error::database(doing))?;
    let sql = format!(
        "WITH member AS (
             SELECT p.name AS projection, w.id AS worker_id, w.lanes,
                    row_number() OVER (PARTITION BY p.name ORDER BY w.partition_key) - 1 AS k,
                    count(*) OVER (PARTITION BY p.name) AS n
             FROM {projections} p JOIN {workers} w ON p.name = ANY (w.projections)
             WHERE p.replica_set = $1 AND w.replica_set = $1 AND w.generation = $2 AND w.state = 'ready'
         ), part AS (
             SELECT projection, worker_id, lanes, k * 65536 / n AS low, (k + 1) * 65536 / n AS high FROM member
         ), dealt AS (
             SELECT projection, worker_id, lane, int4multirange(int4range(
                        (low + (high - low) * lane / lanes)::int, (low + (high - low) * (lane + 1) / lanes)::int)) AS keys
             FROM part, generate_series(0, lanes - 1) AS lane
             UNION ALL
             SELECT name, NULL, 0, '{{[0,65536)}}' FROM {projections} p
             WHERE replica_set = $1 AND NOT EXISTS (SELECT FROM member m WHERE m.projection = p.name)
         ), old AS (
             DELETE FROM {checkpoints} WHERE projection IN (SELECT projection FROM dealt)
             RETURNING projection, keys, position, last_event_position, last_event_id
         )
         INSERT INTO {checkpoints} (projection, keys, position, last_event_position, last_event_id, generation, worker_id, lane)
         SELECT old.projection, range_agg(piece), old.position, max(old.last_event_position),
                (array_agg(old.last_event_id ORDER BY old.last_event_position DESC NULLS LAST))[1], $2, dealt.worker_id, dealt.lane
         FROM old JOIN dealt USING (projection), unnest(old.keys * dealt.keys) AS piece
         GROUP BY old.projection, old.position, dealt.worker_id, dealt.lane",
        workers = names.workers(),
    );
    tx.execute_typed(&sql, &[(&replica_set, Type::TEXT), (&generation, Type::INT8)]).map_err(Error::database(doing))?;
    verify_cover(tx, names, replica_set)
}

/// Refuses to go on with checkpoints that overlap or leave keys out (I5): somebody has changed the table by hand, and events would be
/// doubled or lost.
fn verify_cover(tx: &mut Transaction<'_>, names: &Names, replica_set: &str) -> Result<(), Error> {
    let sql = format!(
        "SELECT p.name FROM {} p LEFT JOIN {} c ON c.projection = p.name LEFT JOIN unnest(c.keys) AS piece ON true
         WHERE p.replica_set = $1 GROUP BY p.name
         HAVING range_agg(piece) IS DISTINCT FROM '{{[0,65536)}}' OR sum(upper(piece) - lower(piece)) <> 65536 LIMIT 1",
        names.projections(),
        names.checkpoints()
    );
    let broken = tx
        .query_typed_opt(&sql, &[(&replica_set, Type::TEXT)])
        .map_err(Error::database("verifying the checkpoints"))?;
    match broken {
        None => Ok(()),
        Some(row) => Err(Error::Schema {
            problem: format!(
                "the checkpoints of projection {:?} in {} overlap or leave keys out, which only a change by hand can bring \
                 about: restore them from a backup, or rebuild the projection",
                row.get::<_, String>(0),
                names.checkpoints()
            ),
        }),
    }
}

/// How far a projection of a replica set is behind, over all its workers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lag {
    pub(crate) projection: String,
    /// Its lowest checkpoint.
    pub(crate) position: i64,
    /// The newest visible position less the lowest checkpoint.
    pub(crate) events: i64,
    /// The age of the first event above the lowest checkpoint, by the server's clock; 0 if there is
    /// none, or if it is of no time.
    pub(crate) seconds: f64,
}

/// How far each projection of the replica set is behind.
pub(crate) fn lags(client: &mut Client, names: &Names, replica_set: &str) -> Result<Vec<Lag>, postgres::Error> {
    let rows = client.query_typed(&lags_sql(names), &[(&replica_set, Type::TEXT)])?;
    Ok(rows
        .iter()
        .map(|row| Lag { projection: row.get(0), position: row.get(1), events: row.get(2), seconds: row.get(3) })
        .collect())
}

/// The columns of [`Lag`] for each projection of the replica set `$1`, in SQL.
pub(super) fn lags_sql(names: &Names) -> String {
    let events = names.events();
    format!(
        "SELECT c.projection, c.position, greatest(newest.position - c.position, 0),
                coalesce(extract(epoch FROM clock_timestamp() - next.created_at), 0)::float8
         FROM (SELECT projection, min(position) AS position FROM {} GROUP BY projection) c
         JOIN {} p ON p.name = c.projection AND p.replica_set = $1
         CROSS JOIN (SELECT coalesce(max(global_position), 0) AS position FROM {events}) newest
         LEFT JOIN LATERAL (SELECT created_at FROM {events} e WHERE e.global_position > c.position
                            ORDER BY e.global_position LIMIT 1) next ON isfinite(next.created_at)",
        names.checkpoints(),
        names.projections()
    )
}

/// The lowest checkpoint of these projections; none if they have no checkpoint.
pub(crate) fn lowest(
    client: &mut Client,
    names: &Names,
    projections: &[Known],
) -> Result<Option<i64>, postgres::Error> {
    let sql = format!("SELECT min(position) FROM {} WHERE projection = ANY ($1)", names.checkpoints());
    Ok(client.query_typed_one(&sql, &[(&Known::names(projections), Type::TEXT_ARRAY)])?.get(0))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    /// Each row at a position of its own, so that none is merged with another.
    #[test]
    fn checkpoints_that_overlap_or_leave_keys_out_are_refused() {
        let mut client = testing::connect();
        let names = Names::default();
        client.batch_execute(&names.schema_sql()).unwrap();
        client
            .batch_execute(
                "INSERT INTO orchestrator_replica_sets (name) VALUES ('set');
                 INSERT INTO orchestrator_projections (name, replica_set) VALUES ('p', 'set')",
            )
            .unwrap();
        for (rows, sound) in [
            (&["{[0,65536)}"][..], true),
            (&["{[0,100),[200,65536)}", "{[100,200)}"], true),
            (&[], false),
            (&["{[1,65536)}"], false),
            (&["{[0,65535)}"], false),
            (&["{[0,100),[200,65536)}"], false),
            (&["{[0,100)}", "{[101,65536)}"], false),
            (&["{[0,101)}", "{[100,65536)}"], false),
            (&["{[0,65536)}", "{[0,65536)}"], false),
        ] {
            let mut tx = client.transaction().unwrap();
            tx.execute(
                "INSERT INTO orchestrator_checkpoints (projection, keys, position)
                 SELECT 'p', keys::int4multirange, position FROM unnest($1::text[]) WITH ORDINALITY AS row (keys, position)",
                &[&rows],
            )
            .unwrap();
            match recut(&mut tx, &names, "set", 1) {
                Ok(()) => assert!(sound, "{rows:?}"),
                Err(Error::Schema { problem }) => {
                    assert!(!sound && problem.contains("projection \"p\""), "{rows:?}: {problem}");
                }
                Err(error) => panic!("{rows:?}: {error}"),
            }
        }
    }
}
