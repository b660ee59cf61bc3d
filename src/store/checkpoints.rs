//! Checkpoints: how far each projection got for each set of keys, and whose they are.
//!
//! *Invariant.* The key sets of a projection's checkpoints are disjoint and cover the key space
//! (I5): rows are only ever made whole ([`claim`]), cut ([`deal`]) and merged
//! ([`merge`](super::fence::merge)). Positions are moved by [`fence`](super::fence) alone. Whatever
//! changes whose a row is gives it a new token.

use postgres::types::Type;
use postgres::{Client, Transaction};
use uuid::Uuid;

use super::continuity;
use super::names::Names;
use super::registration::{Known, Registration};
use crate::error::Error;
use crate::plan::{Deal, KeySet, WorkerId};
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

/// Gives the checkpoints of some projections to new owners, in a generation: each row is intersected
/// with each share, and the pieces get new tokens. A projection without shares belongs to nobody. No
/// position is touched: rows of one lane at one position become one row, others stay apart. Of
/// several rows' last events, the last one is kept.
pub(crate) fn deal(tx: &mut Transaction<'_>, names: &Names, generation: i64, deals: &[Deal]) -> Result<(), Error> {
    let doing = "giving the checkpoints to their new owners";
    let affected: Vec<&str> = deals.iter().map(|deal| &*deal.projection).collect();
    let desired: Vec<&str> = deals.iter().map(|deal| deal.desired.as_str()).collect();
    // First the locks, in one order. A batch that is just committing is waited for here, so that the
    // statement below, which has a snapshot of its own, sees its position.
    tx.query_typed(
        &names.sql("SELECT FROM {checkpoints} WHERE projection = ANY ($1) ORDER BY token FOR UPDATE"),
        &[(&affected, Type::TEXT_ARRAY)],
    )
    .map_err(Error::database(doing))?;
    let sql = names.sql(
        "WITH share AS (
             SELECT * FROM unnest($2::text[], $3::uuid[], $4::int4[], $5::int4multirange[])
                 AS share (projection, worker_id, lane, keys)
             UNION ALL
             SELECT projection, NULL, 0, {all_keys} FROM unnest($1::text[]) AS projection
             WHERE projection <> ALL ($2)
         ), old AS (
             DELETE FROM {checkpoints} WHERE projection = ANY ($1)
             RETURNING projection, keys, position, last_event_position, last_event_id
         )
         INSERT INTO {checkpoints} (projection, keys, position, last_event_position, last_event_id, generation, worker_id, lane)
         SELECT old.projection, range_agg(piece), old.position, max(old.last_event_position),
                (array_agg(old.last_event_id ORDER BY old.last_event_position DESC NULLS LAST))[1], $6, share.worker_id, share.lane
         FROM old JOIN share USING (projection), unnest(old.keys * share.keys) AS piece
         GROUP BY old.projection, old.position, share.worker_id, share.lane",
    );
    let shares = || deals.iter().flat_map(|deal| deal.shares.iter().map(move |share| (&*deal.projection, share)));
    let of: Vec<&str> = shares().map(|(projection, _)| projection).collect();
    let workers: Vec<Uuid> = shares().map(|(_, share)| share.worker.0).collect();
    let lanes: Vec<i32> = shares().map(|(_, share)| i32::try_from(share.lane).unwrap_or(i32::MAX)).collect();
    let keys: Vec<&KeySet> = shares().map(|(_, share)| &share.keys).collect();
    tx.execute_typed(
        &sql,
        &[
            (&affected, Type::TEXT_ARRAY),
            (&of, Type::TEXT_ARRAY),
            (&workers, Type::UUID_ARRAY),
            (&lanes, Type::INT4_ARRAY),
            (&keys, Type::INT4MULTI_RANGE_ARRAY),
            (&generation, Type::INT8),
        ],
    )
    .and_then(|_| {
        tx.execute_typed(
            &names.sql(
                "UPDATE {projections} p SET deal = deal + 1, dealt_state = dealt.state
                 FROM unnest($1::text[], $2::text[]) AS dealt (name, state) WHERE p.name = dealt.name",
            ),
            &[(&affected, Type::TEXT_ARRAY), (&desired, Type::TEXT_ARRAY)],
        )
    })
    .map_err(Error::database(doing))?;
    verify_cover(tx, names, &affected)
}

/// Refuses to go on with checkpoints that overlap or leave keys out (I5), since events would be
/// doubled or lost: the table was changed by hand, or the shares are wrong.
fn verify_cover(tx: &mut Transaction<'_>, names: &Names, projections: &[&str]) -> Result<(), Error> {
    let sql = names.sql(
        "SELECT p.name FROM unnest($1::text[]) AS p (name)
         LEFT JOIN {checkpoints} c ON c.projection = p.name LEFT JOIN unnest(c.keys) AS piece ON true
         GROUP BY p.name
         HAVING range_agg(piece) IS DISTINCT FROM {all_keys} OR sum(upper(piece) - lower(piece)) <> {key_space} LIMIT 1",
    );
    let broken = tx
        .query_typed_opt(&sql, &[(&projections, Type::TEXT_ARRAY)])
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

/// All keys that a worker owns of any projection, in a generation.
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

/// The lowest checkpoint of these projections; none if they have no checkpoint.
pub(crate) fn lowest(
    client: &mut Client,
    names: &Names,
    projections: &[Known],
) -> Result<Option<i64>, postgres::Error> {
    let sql = names.sql("SELECT min(position) FROM {checkpoints} WHERE projection = ANY ($1)");
    Ok(client.query_typed_one(&sql, &[(&Known::names(projections), Type::TEXT_ARRAY)])?.get(0))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::plan::{DesiredState, Share};

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
            let nobody = Deal { projection: "p".into(), desired: DesiredState::Running, shares: vec![] };
            match deal(&mut tx, &names, 1, &[nobody]) {
                Ok(()) => assert!(sound, "{rows:?}"),
                Err(Error::Schema { problem }) => {
                    assert!(!sound && problem.contains("projection \"p\""), "{rows:?}: {problem}");
                }
                Err(error) => panic!("{rows:?}: {error}"),
            }
        }
    }

    #[test]
    fn shares_that_overlap_or_leave_keys_out_are_refused() {
        let mut client = testing::connect();
        let names = Names::default();
        client.batch_execute(&names.schema_sql()).unwrap();
        client
            .batch_execute(
                "INSERT INTO orchestrator_replica_sets (name) VALUES ('set');
                 INSERT INTO orchestrator_projections (name, replica_set) VALUES ('p', 'set');
                 INSERT INTO orchestrator_checkpoints (projection, keys, position) VALUES ('p', '{[0,65536)}', 7)",
            )
            .unwrap();
        for (parts, sound) in [
            (&[(0, 100), (100, 65_536)][..], true),
            (&[(0, 100), (101, 65_536)], false),
            (&[(0, 101), (100, 65_536)], false),
            (&[(0, 65_535)], false),
        ] {
            let shares = parts.iter().enumerate().map(|(lane, part)| {
                let (worker, keys) = (WorkerId(Uuid::from_u128(1)), KeySet::from_ranges([*part]));
                Share { worker, lane, keys }
            });
            let shares = shares.collect();
            let mut tx = client.transaction().unwrap();
            let dealt =
                deal(&mut tx, &names, 1, &[Deal { projection: "p".into(), desired: DesiredState::Running, shares }]);
            assert_eq!(dealt.is_ok(), sound, "{parts:?}: {dealt:?}");
        }
    }
}
