//! Gives the checkpoints of projections to new owners.

use std::collections::BTreeSet;

use postgres::Transaction;
use postgres::types::Type;
use uuid::Uuid;

use super::fence::REPORTED;
use super::inspection;
use super::names::Names;
use crate::error::Error;
use crate::plan::{Deal, Fault, KeySet};

/// Gives the checkpoints of some of a replica set's projections to new owners, in a generation:
/// each row is intersected with each share, and the pieces get new tokens. A projection without
/// shares belongs to no worker. No position is changed: rows of one lane at one position become one
/// row, other rows stay separate. A merged row keeps the latest of the last events. Every piece
/// gets what the former owner reported; a merged row keeps the report with the most attempts. The
/// number of handled events goes to one of the pieces, or begins again if the scope has changed.
pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    names: &Names,
    replica_set: &str,
    generation: i64,
    deals: &[Deal],
) -> Result<(), Error> {
    let doing = "giving the checkpoints to their new owners";
    let all: Vec<&str> = deals.iter().map(|deal| &*deal.projection).collect();
    // Another replica set may have taken over a projection. The locks are taken in the same order
    // as in `claim`.
    let held = tx
        .query_typed(
            &names.sql(
                "SELECT name FROM {projections} WHERE replica_set = $1 AND name = ANY ($2) ORDER BY name FOR NO KEY UPDATE",
            ),
            &[(&replica_set, Type::TEXT), (&all, Type::TEXT_ARRAY)],
        )
        .map_err(Error::database(doing))?;
    let held: BTreeSet<&str> = held.iter().map(|row| row.get(0)).collect();
    let deals = || deals.iter().filter(|deal| held.contains(&*deal.projection));
    let affected: Vec<&str> = deals().map(|deal| &*deal.projection).collect();
    let desired: Vec<&str> = deals().map(|deal| deal.desired.as_str()).collect();
    // Then lock the checkpoints, in one order. This waits for a batch that is committing, so that
    // the statement below, which has a snapshot of its own, sees its position.
    tx.query_typed(
        &names.sql("SELECT FROM {checkpoints} WHERE projection = ANY ($1) ORDER BY token FOR UPDATE"),
        &[(&affected, Type::TEXT_ARRAY)],
    )
    .map_err(Error::database(doing))?;
    let of_worst = REPORTED
        .map(|column| format!("(array_agg(old.{column} ORDER BY old.attempt_position IS NULL, old.attempts DESC))[1]"));
    let sql = names.sql_with(
        "WITH share AS (
             SELECT * FROM unnest($2::text[], $3::uuid[], $4::int4[], $5::int4multirange[])
                 AS share (projection, worker_id, lane, keys)
             UNION ALL
             SELECT projection, NULL, 0, {all_keys} FROM unnest($1::text[]) AS projection
             WHERE projection <> ALL ($2)
         ), old AS (
             DELETE FROM {checkpoints} WHERE projection = ANY ($1)
             RETURNING projection, keys, position, highest, handled, last_event_position, last_event_id, {reported}
         )
         INSERT INTO {checkpoints} (projection, keys, position, highest, handled, last_event_position, last_event_id, generation,
                                    worker_id, lane, {reported})
         SELECT old.projection, range_agg(piece), old.position, max(old.highest),
                coalesce(sum(old.handled) FILTER (WHERE lower(piece) = lower(old.keys) AND old.projection = ANY (
                    SELECT name FROM {projections} WHERE counted_from IS NOT NULL)), 0),
                max(old.last_event_position),
                (array_agg(old.last_event_id ORDER BY old.last_event_position DESC NULLS LAST))[1], $6, share.worker_id, share.lane,
                {of_worst}
         FROM old JOIN share USING (projection), unnest(old.keys * share.keys) AS piece
         GROUP BY old.projection, old.position, share.worker_id, share.lane",
        &[("reported", &REPORTED.join(", ")), ("of_worst", &of_worst.join(", "))],
    );
    let shares = || deals().flat_map(|deal| deal.shares.iter().map(move |share| (&*deal.projection, share)));
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
            &names.sql_with(
                "UPDATE {projections} p SET deal = DEFAULT, dealt_state = dealt.state, dealt_as = {digest}, fault = NULL,
                        counted_from = coalesce(counted_from, (SELECT max(position) FROM {checkpoints} WHERE projection = p.name))
                 FROM unnest($1::text[], $2::text[]) AS dealt (name, state) WHERE p.name = dealt.name",
                &[("digest", &inspection::digest_sql(names))],
            ),
            &[(&affected, Type::TEXT_ARRAY), (&desired, Type::TEXT_ARRAY)],
        )
    })
    .map_err(Error::database(doing))?;
    verify_cover(tx, names, &affected)
}

/// Takes a projection from all workers: its checkpoints have this fault, so no worker may process
/// it. Keys and positions are not changed, so that an operator can repair them.
pub(crate) fn withdraw(
    tx: &mut Transaction<'_>,
    names: &Names,
    replica_set: &str,
    projection: &str,
    fault: Fault,
) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "UPDATE {projections} SET deal = DEFAULT, dealt_as = NULL, fault = $3 WHERE name = $1 AND replica_set = $2",
    );
    let values = [(&projection as _, Type::TEXT), (&replica_set as _, Type::TEXT), (&fault.as_str() as _, Type::TEXT)];
    if tx.execute_typed(&sql, &values)? == 1 {
        disown(tx, names, projection)?;
    }
    Ok(())
}

/// Takes the checkpoints of a projection from their owners. The caller has locked the projection's
/// row.
pub(super) fn disown(tx: &mut Transaction<'_>, names: &Names, projection: &str) -> Result<(), postgres::Error> {
    // All statements lock checkpoints in this order.
    let lock = names.sql("SELECT FROM {checkpoints} WHERE projection = $1 ORDER BY token FOR UPDATE");
    tx.query_typed(&lock, &[(&projection, Type::TEXT)])?;
    let sql = names.sql(
        "UPDATE {checkpoints} SET token = DEFAULT, worker_id = NULL, generation = 0, lane = 0 WHERE projection = $1",
    );
    tx.execute_typed(&sql, &[(&projection, Type::TEXT)])?;
    Ok(())
}

/// Refuses to continue with checkpoints that overlap or leave keys out (I5), because events would
/// be processed twice or lost. Either the shares are wrong, or the table was changed by hand a
/// moment ago.
pub(super) fn verify_cover(tx: &mut Transaction<'_>, names: &Names, projections: &[&str]) -> Result<(), Error> {
    // A rewind executes it under the settings of the application, so everything is qualified.
    let sql = names.sql(
        "SELECT p.name FROM pg_catalog.unnest($1::pg_catalog.text[]) AS p (name)
         LEFT JOIN LATERAL (
             SELECT pg_catalog.range_agg(piece) AS keys,
                    pg_catalog.sum(pg_catalog.upper(piece) OPERATOR(pg_catalog.-) pg_catalog.lower(piece)) AS size
             FROM {checkpoints} AS c CROSS JOIN LATERAL pg_catalog.unnest(c.keys) AS piece
             WHERE c.projection OPERATOR(pg_catalog.=) p.name) AS covered ON true
         WHERE NOT coalesce(covered.keys OPERATOR(pg_catalog.=) {all_keys}, false)
            OR covered.size OPERATOR(pg_catalog.<>) {key_space} LIMIT 1",
    );
    let broken = tx
        .query_typed_opt(&sql, &[(&projections, Type::TEXT_ARRAY)])
        .map_err(Error::database("verifying the checkpoints"))?;
    match broken {
        None => Ok(()),
        Some(row) => Err(Error::Schema {
            problem: format!(
                "projection {:?} was not reassigned: its checkpoints in {} overlap or leave keys out",
                row.get::<_, String>(0),
                names.checkpoints()
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use postgres::Client;

    use super::super::testing;
    use super::*;
    use crate::plan::{DesiredState, Share, WorkerId};
    use crate::store::fence::{self, Checkpoint, Owner};

    /// Each row is at a position of its own, so that none is merged with another.
    #[test]
    fn checkpoints_that_overlap_or_leave_keys_out_are_refused() {
        let mut client = testing::connect_with_projection();
        let names = Names::default();
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
            let unowned = Deal { projection: "p".into(), desired: DesiredState::Running, shares: vec![] };
            match apply(&mut tx, &names, "set", 1, &[unowned]) {
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
        let mut client = testing::connect_with_projection();
        let names = Names::default();
        let checkpoint =
            "INSERT INTO orchestrator_checkpoints (projection, keys, position) VALUES ('p', '{[0,65536)}', 7)";
        client.batch_execute(checkpoint).unwrap();
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
            let dealt = apply(
                &mut tx,
                &names,
                "set",
                1,
                &[Deal { projection: "p".into(), desired: DesiredState::Running, shares }],
            );
            assert_eq!(dealt.is_ok(), sound, "{parts:?}: {dealt:?}");
        }
    }

    /// A merge that locked these rows in the opposite order would deadlock with the deal. The first
    /// of these rows is the one that the merge deletes.
    #[test]
    fn merge_waits_for_a_deal_and_the_deal_does_not_wait_for_it() {
        let url = testing::database();
        let connect = || Client::connect(&url, postgres::NoTls).unwrap();
        let (mut dealer, mut runner, mut observer) = (connect(), connect(), connect());
        let names = Names::default();
        testing::begin(&mut dealer);
        dealer
            .batch_execute(
                "INSERT INTO orchestrator_checkpoints (projection, keys, position, generation, worker_id)
                 SELECT 'p', keys::int4multirange, 7, 1, '00000000-0000-0000-0000-000000000001'
                 FROM unnest('{\"{[0,100)}\",\"{[100,65536)}\"}'::text[]) AS keys",
            )
            .unwrap();
        let owner = Owner { worker: WorkerId(Uuid::from_u128(1)), generation: 1 };
        let row = |token, keys| Checkpoint {
            token,
            keys: KeySet::from_ranges([keys]),
            position: 7,
            highest: 0,
            attempt: None,
        };
        let (from, into) = (row(1, (0, 100)), row(2, (100, 65_536)));
        let mut tx = dealer.transaction().unwrap();
        // The state of a deal that has locked its first row.
        tx.execute("SELECT FROM orchestrator_checkpoints WHERE token = 1 FOR UPDATE", &[]).unwrap();
        let merging = std::thread::spawn({
            let names = names.clone();
            move || fence::merge(&mut runner, &names, &into, &from, owner)
        });
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
        let begun = Instant::now();
        while !observer.query_one(waits, &[]).unwrap().get::<_, bool>(0) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the merge does not wait");
        }
        let paused = Deal { projection: "p".into(), desired: DesiredState::Paused, shares: vec![] };
        apply(&mut tx, &names, "set", 1, &[paused]).unwrap();
        tx.commit().unwrap();
        assert!(!merging.join().unwrap().unwrap(), "the rows are not this worker's any more");
    }

    #[test]
    fn projection_taken_over_by_another_replica_set_is_not_dealt() {
        let mut client = testing::connect_with_projection();
        let names = Names::default();
        client
            .batch_execute(
                "INSERT INTO orchestrator_replica_sets (name) VALUES ('another');
                 UPDATE orchestrator_projections SET replica_set = 'another';
                 INSERT INTO orchestrator_checkpoints (projection, keys, position) VALUES ('p', '{[0,65536)}', 7)",
            )
            .unwrap();
        let token = |client: &mut Client| -> i64 {
            client.query_one("SELECT token FROM orchestrator_checkpoints", &[]).unwrap().get(0)
        };
        let before = token(&mut client);
        for (replica_set, is_dealt) in [("set", false), ("another", true)] {
            let mut tx = client.transaction().unwrap();
            let of = Deal { projection: "p".into(), desired: DesiredState::Running, shares: vec![] };
            apply(&mut tx, &names, replica_set, 1, &[of]).unwrap();
            tx.commit().unwrap();
            assert_eq!(token(&mut client) != before, is_dealt, "{replica_set}");
        }
    }
}
