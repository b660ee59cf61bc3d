//! Parked aggregates: those of which a projection does not handle the events, from one that failed
//! on, while it handles the events of all others.
//!
//! *Invariant.* The events of a parked aggregate that lie at or above the position in its row, and
//! at or below the checkpoint of its key, were not handled. They wait in the table of events. All
//! others at or below the checkpoint were handled or discarded (I9).
//!
//! Everything here is done by the owner of the key, in a transaction that also locks or changes the
//! key's checkpoint under the [fence](super::fence). Whoever changes several of these rows locks
//! them in one order: the projection, the checkpoints, the parked aggregates.
//!
//! - *Parking* inserts the row and moves the checkpoint past the event, in one transaction. If its
//!   outcome is unknown, the next load shows it: either both, or nothing.
//! - *A replay* handles the waiting events in parts. Each part counts the handled events in the
//!   checkpoint and moves the position of the parked row from the one that was loaded. So a part
//!   whose outcome was unknown, and that took effect after all, is not handled twice: the position
//!   has changed, and the second attempt changes nothing and is rolled back.
//! - *The end of a replay* removes the row and gives the checkpoint a new token, because another
//!   batch of the same owner, whose outcome is unknown, may have skipped the aggregate. If that
//!   batch committed afterwards, the events that it skipped would be lost.
//! - *A deal* cuts checkpoints and merges them, and does not touch the parked rows: they belong to
//!   keys. The new owner loads them, and continues a replay where the last part ended.
//! - *A discard* gives the checkpoint of the key a new token after it has inserted its row, so a
//!   batch or a part of a replay that was begun before cannot handle the event any more.
//! - *A rewind* to a position removes the rows above it.
//! - While the rows of an aggregate are [rebuilt](super::forgetting), it has a row that is not
//!   replayed.

mod waiting;

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Transaction};
use uuid::Uuid;

use super::fence::EventMark;
use super::names::Names;
use crate::event::{Event, StreamId};
use crate::plan::KeySet;

pub(crate) use self::waiting::{Waiting, read, waiting};

/// An aggregate that is parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parked {
    pub(crate) stream: StreamId,
    pub(crate) key: i32,
    /// The event that failed, or the next one that waits once a replay has handled some.
    pub(crate) event: EventMark,
    pub(crate) event_type: String,
    /// Events up to this position may have been handled before a rewind.
    pub(crate) highest: i64,
    /// Whether it is to be replayed.
    pub(crate) is_requested: bool,
    /// How many replays have begun since the last one that ended by itself.
    pub(crate) replays_begun: u32,
}

/// What a projection does not handle.
#[derive(Debug, Default)]
pub(crate) struct Exceptions {
    pub(crate) parked: Vec<Parked>,
    /// The ids of the discarded events above a position.
    pub(crate) discarded: Vec<Uuid>,
}

/// The failure of an event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failed<'a> {
    pub(crate) event: EventMark,
    pub(crate) event_type: &'a str,
    pub(crate) attempts: u32,
    pub(crate) error: &'a str,
}

/// The last errors, newest first: the new one, and at most two of those before. Each names its
/// event, because a replay may fail at a later one.
const ERRORS: &str = "(SELECT jsonb_agg(entry ORDER BY number) FROM (
         SELECT entry, number FROM jsonb_array_elements(jsonb_build_array(jsonb_build_object('error', {error}, 'event', {event}, 'at', clock_timestamp())) || {before})
             WITH ORDINALITY AS entries (entry, number) ORDER BY number LIMIT 3) AS last)";

/// Loads what is parked of these keys, and which events of them above a position are discarded. It
/// is executed after the checkpoints were loaded: what changes in between gives the checkpoints new
/// tokens.
pub(crate) fn load(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    keys: &KeySet,
    above: i64,
) -> Result<Exceptions, postgres::Error> {
    let parked = names.sql(
        "SELECT bounded_context, aggregate_type, aggregate_id, key, position, event_id, event_type, highest,
                replay_requested_at IS NOT NULL AND rebuild_id IS NULL, replays_begun
         FROM {parked} WHERE projection OPERATOR(pg_catalog.=) $1 AND $2 OPERATOR(pg_catalog.@>) key
         ORDER BY replay_requested_at, position",
    );
    let discarded = names.sql(
        "SELECT event_id FROM {discarded} WHERE projection OPERATOR(pg_catalog.=) $1 AND $2 OPERATOR(pg_catalog.@>) key
           AND position OPERATOR(pg_catalog.>) $3",
    );
    let of: [(&(dyn ToSql + Sync), Type); 2] = [(&projection, Type::TEXT), (keys, Type::INT4MULTI_RANGE)];
    let rows = tx.query_typed(&parked, &of)?;
    let parked = rows.iter().map(|row| Parked {
        stream: StreamId::new(row.get::<_, &str>(0), row.get::<_, &str>(1), row.get::<_, &str>(2)),
        key: row.get(3),
        event: EventMark { position: row.get(4), id: row.get(5) },
        event_type: row.get(6),
        highest: row.get(7),
        is_requested: row.get(8),
        replays_begun: u32::try_from(row.get::<_, i32>(9)).unwrap_or(0),
    });
    let parked = parked.collect();
    let [of_projection, of_keys] = of;
    let rows = tx.query_typed(&discarded, &[of_projection, of_keys, (&above, Type::INT8)])?;
    Ok(Exceptions { parked, discarded: rows.iter().map(|row| row.get(0)).collect() })
}

/// Locks the projection until the transaction ends, and returns how many of its aggregates are
/// parked. So no two owners can park the last aggregate that is allowed. Those that are there
/// because they are being rebuilt do not count.
pub(crate) fn count(tx: &mut Transaction<'_>, names: &Names, projection: &str) -> Result<u32, postgres::Error> {
    let of = [(&projection as &(dyn ToSql + Sync), Type::TEXT)];
    tx.query_typed(&names.sql("SELECT FROM {projections} WHERE name = $1 FOR NO KEY UPDATE"), &of)?;
    let counted = tx.query_typed_one(
        &names.sql("SELECT count(*) FROM {parked} WHERE projection = $1 AND rebuild_id IS NULL"),
        &of,
    )?;
    Ok(u32::try_from(counted.get::<_, i64>(0)).unwrap_or(u32::MAX))
}

/// Parks the aggregate of an event that has failed. The caller has counted the parked ones, and
/// moves the checkpoint in the same transaction.
pub(crate) fn insert(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    event: &Event,
    failed: Failed<'_>,
    highest: i64,
) -> Result<(), postgres::Error> {
    let sql = names.sql_with(
        "INSERT INTO {parked} (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id, event_type,
                               attempts, error, errors, highest)
         SELECT $1, $2, $3, aggregate_id, {event_key}, $6, $7, $8, $9, $5, {errors}, $10 FROM (SELECT $4 AS aggregate_id) AS stream",
        &[("errors", &errors("$5", "$7", "'[]'"))],
    );
    tx.execute_typed(
        &sql,
        &[
            (&projection, Type::TEXT),
            (&event.bounded_context(), Type::TEXT),
            (&event.aggregate_type(), Type::TEXT),
            (&event.aggregate_id(), Type::TEXT),
            (&failed.error, Type::TEXT),
            (&failed.event.position, Type::INT8),
            (&failed.event.id, Type::UUID),
            (&failed.event_type, Type::TEXT),
            (&whole(failed.attempts), Type::INT4),
            (&highest, Type::INT8),
        ],
    )?;
    Ok(())
}

/// Records before a replay that it is the one with this number since the last one that ended by
/// itself; 0 if it has ended by itself. Returns false if the replay is no longer wanted.
pub(crate) fn set_begun(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    parked: &Parked,
    number: u32,
) -> Result<bool, postgres::Error> {
    let sql = "UPDATE {parked} SET replays_begun = $6 WHERE {loaded} AND replay_requested_at IS NOT NULL";
    change(tx, names, sql, projection, parked, &[(&whole(number), Type::INT4)])
}

/// Records that the replay of an aggregate has failed. The attempts are those at the event at which
/// it is parked now. Returns false if the row has changed since it was loaded.
pub(crate) fn set_failed(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    parked: &Parked,
    failed: Failed<'_>,
) -> Result<bool, postgres::Error> {
    let errors = errors("$6", "$8", "errors");
    let sql = format!(
        "UPDATE {{parked}} SET position = $7, event_id = $8, event_type = $9, error = $6, errors = {errors},
                attempts = CASE WHEN event_id = $8 THEN attempts ELSE 0 END + $10, replay_requested_at = NULL, replays_begun = 0
         WHERE {{loaded}}"
    );
    let values: [(&(dyn ToSql + Sync), Type); 5] = [
        (&failed.error, Type::TEXT),
        (&failed.event.position, Type::INT8),
        (&failed.event.id, Type::UUID),
        (&failed.event_type, Type::TEXT),
        (&whole(failed.attempts), Type::INT4),
    ];
    change(tx, names, &sql, projection, parked, &values)
}

/// Moves a parked aggregate to the next event that waits, in the transaction that has handled those
/// before it. The replay goes on, so it has begun once since it last made progress. No attempt at
/// that event has failed yet. Returns false if the row has changed since it was loaded.
pub(crate) fn set_next(
    client: &mut impl GenericClient,
    names: &Names,
    projection: &str,
    parked: &Parked,
    next: &Waiting,
) -> Result<bool, postgres::Error> {
    let sql = "UPDATE {parked} SET position = $6, event_id = $7, event_type = $8, attempts = 0, replays_begun = 1 WHERE {loaded}";
    let values: [(&(dyn ToSql + Sync), Type); 3] =
        [(&next.event.position, Type::INT8), (&next.event.id, Type::UUID), (&next.event_type, Type::TEXT)];
    change(client, names, sql, projection, parked, &values)
}

/// Removes a parked aggregate of which no event waits any more, in the transaction that has handled
/// the last ones. Returns false if the row has changed since it was loaded.
pub(crate) fn delete(
    client: &mut impl GenericClient,
    names: &Names,
    projection: &str,
    parked: &Parked,
) -> Result<bool, postgres::Error> {
    change(client, names, "DELETE FROM {parked} WHERE {loaded}", projection, parked, &[])
}

/// Asks for the replay of everything that is parked of these projections, as far as they belong to
/// a replica set. It begins when the rows are loaded the next time.
pub(crate) fn request_all(
    client: &mut impl GenericClient,
    names: &Names,
    replica_set: &str,
    projections: &[&str],
) -> Result<u64, postgres::Error> {
    let sql = names.sql(
        "UPDATE {parked} SET replay_requested_at = clock_timestamp()
         WHERE projection IN (SELECT name FROM {projections} WHERE name = ANY ($1) AND replica_set = $2) AND replay_requested_at IS NULL",
    );
    client.execute_typed(&sql, &[(&projections, Type::TEXT_ARRAY), (&replica_set, Type::TEXT)])
}

/// Executes a statement on one parked aggregate, if it is still at the position that was loaded.
/// Some of these statements are executed beside a handler, so their operators are qualified.
fn change(
    client: &mut impl GenericClient,
    names: &Names,
    sql: &str,
    projection: &str,
    parked: &Parked,
    values: &[(&(dyn ToSql + Sync), Type)],
) -> Result<bool, postgres::Error> {
    let loaded = "projection OPERATOR(pg_catalog.=) $1 AND bounded_context OPERATOR(pg_catalog.=) $2
        AND aggregate_type OPERATOR(pg_catalog.=) $3 AND aggregate_id OPERATOR(pg_catalog.=) $4 AND position OPERATOR(pg_catalog.=) $5";
    let StreamId { bounded_context, aggregate_type, aggregate_id } = &parked.stream;
    let of: [(&(dyn ToSql + Sync), Type); 5] = [
        (&projection, Type::TEXT),
        (bounded_context, Type::TEXT),
        (aggregate_type, Type::TEXT),
        (aggregate_id, Type::TEXT),
        (&parked.event.position, Type::INT8),
    ];
    let all: Vec<_> = of.into_iter().chain(values.iter().cloned()).collect();
    Ok(client.execute_typed(&names.sql_with(sql, &[("loaded", &loaded)]), &all)? == 1)
}

/// The value of `errors` after this error at this event.
fn errors(error: &str, event: &str, before: &str) -> String {
    ERRORS.replace("{error}", error).replace("{event}", event).replace("{before}", before)
}

fn whole(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use postgres::Client;

    use super::*;
    use crate::event::EventParts;
    use crate::plan::WorkerId;
    use crate::scope::Scope;
    use crate::store::fence::{self, Checkpoint, Owner};
    use crate::store::session::Sessions;
    use crate::store::testing;

    const OWNER: Owner = Owner { worker: WorkerId(Uuid::from_u128(1)), generation: 1 };

    /// Five events of two aggregates in turn, and a checkpoint at position 2.
    fn begin() -> (Client, Checkpoint, Vec<Event>) {
        let mut client = testing::connect_with_projection();
        client
            .batch_execute(
                "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
                 SELECT 'test', 'Thing', chr(97 + i % 2), 1 + i / 2, gen_random_uuid(), 'Type' || i, '' FROM generate_series(0, 4) AS i;
                 INSERT INTO orchestrator_checkpoints (projection, keys, position, generation, worker_id)
                 VALUES ('p', '{[0,65536)}', 2, 1, '00000000-0000-0000-0000-000000000001')",
            )
            .unwrap();
        let token = client.query_one("SELECT token FROM orchestrator_checkpoints", &[]).unwrap().get(0);
        let row = Checkpoint { token, keys: KeySet::all(), position: 2, highest: 0, attempt: None };
        let sql = "SELECT global_position, event_id, event_type FROM events ORDER BY 1";
        let rows = client.query(sql, &[]).unwrap();
        let all: Vec<Waiting> = rows
            .iter()
            .map(|row| Waiting {
                event: EventMark { position: row.get(0), id: row.get(1) },
                event_type: row.get(2),
                weight: 0,
            })
            .collect();
        let events = in_transaction(&mut client, |tx| read(tx, &Names::default(), &all).unwrap());
        (client, row, events)
    }

    fn in_transaction<T>(client: &mut Client, change: impl FnOnce(&mut Transaction<'_>) -> T) -> T {
        let mut tx = client.transaction().unwrap();
        let value = change(&mut tx);
        tx.commit().unwrap();
        value
    }

    fn failed(event: &Event) -> Failed<'_> {
        let mark = EventMark { position: event.global_position(), id: event.event_id() };
        Failed { event: mark, event_type: event.event_type(), attempts: 3, error: "no such customer" }
    }

    fn park(client: &mut Client, event: &Event) {
        in_transaction(client, |tx| insert(tx, &Names::default(), "p", event, failed(event), 9).unwrap());
    }

    fn loaded(client: &mut Client, keys: &KeySet, above: i64) -> Exceptions {
        in_transaction(client, |tx| load(tx, &Names::default(), "p", keys, above).unwrap())
    }

    #[test]
    fn exceptions_are_loaded_by_key_and_position() {
        let (mut client, _, events) = begin();
        park(&mut client, &events[2]);
        let row = loaded(&mut client, &KeySet::all(), 0).parked.remove(0);
        let key = "SELECT (hashtextextended('a', 0) & 65535)::int";
        let key: i32 = client.query_one(key, &[]).unwrap().get(0);
        let stream = StreamId::new("test", "Thing", "a");
        let failed = (failed(&events[2]).event, "Type2".to_owned());
        let expected = (stream, key, 9, false, 0);
        assert_eq!((row.event, row.event_type), failed);
        assert_eq!((row.stream, row.key, row.highest, row.is_requested, row.replays_begun), expected);
        client
            .execute(
                "INSERT INTO orchestrator_discarded (projection, event_id, bounded_context, aggregate_type, aggregate_id, key, position,
                     event_type, discarded_by, reason, command_id)
                 SELECT 'p', event_id, bounded_context, aggregate_type, aggregate_id, $1, global_position, event_type, '', '', 0
                 FROM events WHERE global_position IN (3, 5)",
                &[&key],
            )
            .unwrap();
        for (keys, above, parked, discarded) in [
            (KeySet::all(), 0, 1, 2),
            (KeySet::all(), 3, 1, 1),
            (KeySet::all(), 5, 1, 0),
            (KeySet::from_ranges([(0, key)]), 0, 0, 0),
            (KeySet::from_ranges([(key, key + 1)]), 4, 1, 1),
            (KeySet::default(), 0, 0, 0),
        ] {
            let found = loaded(&mut client, &keys, above);
            assert_eq!((found.parked.len(), found.discarded.len()), (parked, discarded), "{keys} above {above}");
        }
    }

    #[test]
    fn what_waits_is_of_the_aggregate_in_scope_and_not_discarded() {
        let (mut client, _, events) = begin();
        client
            .batch_execute(
                "INSERT INTO orchestrator_discarded (projection, event_id, bounded_context, aggregate_type, aggregate_id, key, position,
                     event_type, discarded_by, reason, command_id)
                 SELECT 'p', event_id, '', '', '', 0, 1, '', '', '', 0 FROM events WHERE global_position = 1",
            )
            .unwrap();
        for (scope, (from, upto), limit, positions) in [
            (Scope::all(), (1, 9), 9, &[3, 5][..]),
            (Scope::all(), (1, 9), 1, &[3]),
            (Scope::all(), (1, 4), 9, &[3]),
            (Scope::all(), (3, 2), 9, &[]),
            (Scope::all().event_types(["Type4"]), (1, 9), 9, &[5]),
            (Scope::all().aggregate_types(["Other"]), (1, 9), 9, &[]),
            (Scope::all().metadata("tenant", "a"), (1, 9), 9, &[]),
        ] {
            let event = &events[from - 1];
            let found = found(&mut client, &scope, event, upto, limit);
            assert_eq!(found, (positions.to_vec(), false), "{scope:?} {from} {upto} {limit}");
        }
    }

    /// The positions of the events that wait, and whether the failed one is missing.
    fn found(client: &mut Client, scope: &Scope, from: &Event, upto: i64, limit: usize) -> (Vec<i64>, bool) {
        let (stream, range) = (from.stream(), (failed(from).event, upto));
        let found =
            in_transaction(client, |tx| waiting(tx, &Names::default(), "p", scope, &stream, range, limit).unwrap());
        (found.events.iter().map(|waiting| waiting.event.position).collect(), found.is_missing)
    }

    /// An event outside the scope is not missing: the projection does not want it any more.
    #[test]
    fn a_failed_event_that_was_deleted_is_missing() {
        let (mut client, _, events) = begin();
        let (all, none) = (Scope::all(), Scope::all().aggregate_types(["Other"]));
        let failed = &events[2];
        assert_eq!(found(&mut client, &all, failed, 9, 9), (vec![3, 5], false));
        assert_eq!(found(&mut client, &none, failed, 9, 9), (vec![], false));
        client.batch_execute("UPDATE events SET event_id = gen_random_uuid() WHERE global_position = 3").unwrap();
        assert_eq!(found(&mut client, &all, failed, 9, 9), (vec![3, 5], true), "it is another event");
        client.batch_execute("DELETE FROM events WHERE global_position <= 3").unwrap();
        assert_eq!(found(&mut client, &all, failed, 9, 9), (vec![5], true));
        client.batch_execute("DELETE FROM events").unwrap();
        assert_eq!(found(&mut client, &all, failed, 9, 9), (vec![], true));
        let discard = "INSERT INTO orchestrator_discarded (projection, event_id, bounded_context, aggregate_type, aggregate_id, key,
                           position, event_type, discarded_by, reason, command_id)
                       VALUES ('p', $1, '', '', '', 0, 3, '', '', '', 0)";
        client.execute(discard, &[&failed.event_id()]).unwrap();
        assert_eq!(found(&mut client, &all, failed, 9, 9), (vec![], false));
    }

    #[test]
    fn a_row_that_has_moved_is_not_changed() {
        let (mut client, _, events) = begin();
        let names = Names::default();
        park(&mut client, &events[2]);
        let before = loaded(&mut client, &KeySet::all(), 0).parked.remove(0);
        let next = Waiting {
            event: EventMark { position: 5, id: events[4].event_id() },
            event_type: "Type4".into(),
            weight: 0,
        };
        in_transaction(&mut client, |tx| {
            assert!(!set_begun(tx, &names, "p", &before, 1).unwrap(), "no replay is requested");
            assert_eq!(request_all(tx, &names, "another", &["p"]).unwrap(), 0);
            assert_eq!(request_all(tx, &names, "set", &["p"]).unwrap(), 1);
            assert!(set_begun(tx, &names, "p", &before, 2).unwrap());
            assert!(set_next(tx, &names, "p", &before, &next).unwrap());
            assert!(!set_next(tx, &names, "p", &before, &next).unwrap());
            assert!(!set_begun(tx, &names, "p", &before, 1).unwrap());
            assert!(!set_failed(tx, &names, "p", &before, failed(&events[2])).unwrap());
            assert!(!delete(tx, &names, "p", &before).unwrap());
        });
        let after = loaded(&mut client, &KeySet::all(), 0).parked.remove(0);
        let Waiting { event, event_type, .. } = next;
        assert_eq!(after, Parked { event, event_type, is_requested: true, replays_begun: 1, ..before });
        in_transaction(&mut client, |tx| {
            assert!(set_failed(tx, &names, "p", &after, failed(&events[4])).unwrap());
            assert!(!set_begun(tx, &names, "p", &after, 1).unwrap(), "no replay is requested any more");
            assert!(delete(tx, &names, "p", &after).unwrap());
        });
        assert!(loaded(&mut client, &KeySet::all(), 0).parked.is_empty());
    }

    /// The number of attempts, and the ids of the events in the last errors.
    fn attempts(client: &mut Client) -> (i32, Vec<Uuid>) {
        let sql = "SELECT attempts, ARRAY(SELECT (entry->>'event')::uuid FROM jsonb_array_elements(errors) AS entry) FROM orchestrator_parked";
        let row = client.query_one(sql, &[]).unwrap();
        (row.get(0), row.get(1))
    }

    /// A replay may fail at a later event because it has handled those before it, or because they
    /// were discarded.
    #[test]
    fn attempts_are_those_at_the_event_and_errors_name_it() {
        let (mut client, _, events) = begin();
        let names = Names::default();
        let (first, second) = (events[2].event_id(), events[4].event_id());
        park(&mut client, &events[2]);
        assert_eq!(attempts(&mut client), (3, vec![first]));
        let fail = |client: &mut Client, event| {
            let parked = loaded(client, &KeySet::all(), 0).parked.remove(0);
            in_transaction(client, |tx| assert!(set_failed(tx, &names, "p", &parked, failed(event)).unwrap()));
            attempts(client)
        };
        assert_eq!(fail(&mut client, &events[2]), (6, vec![first, first]));
        assert_eq!(fail(&mut client, &events[4]), (3, vec![second, first, first]));
        assert_eq!(fail(&mut client, &events[4]), (6, vec![second, second, first]));
        let parked = loaded(&mut client, &KeySet::all(), 0).parked.remove(0);
        let next = Waiting { event: failed(&events[2]).event, event_type: String::new(), weight: 0 };
        in_transaction(&mut client, |tx| assert!(set_next(tx, &names, "p", &parked, &next).unwrap()));
        assert_eq!(attempts(&mut client).0, 0);
    }

    #[test]
    fn a_worker_that_lost_the_row_passes_and_replays_nothing() {
        let (mut client, row, events) = begin();
        let names = Names::default();
        let mark = failed(&events[2]).event;
        for (row, owner) in [
            (Checkpoint { token: row.token + 1, ..row.clone() }, OWNER),
            (Checkpoint { position: 1, ..row.clone() }, OWNER),
            (row.clone(), Owner { generation: 2, ..OWNER }),
            (row.clone(), Owner { worker: WorkerId(Uuid::from_u128(2)), ..OWNER }),
        ] {
            in_transaction(&mut client, |tx| {
                assert!(!fence::lock(tx, &names, &row, owner).unwrap());
                assert_eq!(fence::pass(tx, &names, &row, owner, mark).unwrap(), None);
                let marked = fence::mark(tx, Sessions::Shared, Duration::from_secs(9), None).unwrap();
                assert_eq!(fence::replayed(tx, &names, &row, owner, (1, true), &marked).unwrap(), None);
            });
        }
        let unmarked =
            in_transaction(&mut client, |tx| fence::mark(tx, Sessions::Shared, Duration::from_secs(9), None).unwrap());
        assert_eq!(fence::replayed(&mut client, &names, &row, OWNER, (1, true), &unmarked).unwrap(), None);
        let mut tx = client.transaction().unwrap();
        assert!(fence::lock(&mut tx, &names, &row, OWNER).unwrap());
        let marked = fence::mark(&mut tx, Sessions::Shared, Duration::from_secs(9), None).unwrap();
        assert_eq!(fence::replayed(&mut tx, &names, &row, OWNER, (2, false), &marked).unwrap(), Some(row.token));
        let renewed = fence::replayed(&mut tx, &names, &row, OWNER, (1, true), &marked).unwrap().unwrap();
        assert!(renewed > row.token);
        let row = Checkpoint { token: renewed, ..row };
        let passed = fence::pass(&mut tx, &names, &row, OWNER, mark).unwrap().unwrap();
        assert!(passed > renewed);
        tx.commit().unwrap();
        let sql = "SELECT position, handled, last_event_position, last_event_id, highest FROM orchestrator_checkpoints";
        let found = client.query_one(sql, &[]).unwrap();
        let found: (i64, i64, i64, Uuid, i64) = (found.get(0), found.get(1), found.get(2), found.get(3), found.get(4));
        assert_eq!(found, (3, 3, 3, mark.id, 3));
    }

    #[test]
    fn what_is_being_rebuilt_is_not_replayed_and_does_not_count() {
        let (mut client, _, events) = begin();
        park(&mut client, &events[2]);
        let seen = |client: &mut Client| {
            let counted = in_transaction(client, |tx| count(tx, &Names::default(), "p").unwrap());
            let rows = loaded(client, &KeySet::all(), 0).parked;
            (counted, rows.iter().map(|row| row.is_requested).collect::<Vec<_>>())
        };
        client.batch_execute("UPDATE orchestrator_parked SET replay_requested_at = now()").unwrap();
        assert_eq!(seen(&mut client), (1, vec![true]));
        client.batch_execute("UPDATE orchestrator_parked SET rebuild_id = 7").unwrap();
        assert_eq!(seen(&mut client), (0, vec![false]), "its events wait nevertheless");
    }

    /// Otherwise two owners could both park the last aggregate that is allowed.
    #[test]
    fn first_owner_to_count_parks_first() {
        let url = testing::database();
        let connect = || Client::connect(&url, postgres::NoTls).unwrap();
        let (mut first, mut second, mut observer) = (connect(), connect(), connect());
        testing::begin(&mut first);
        let events = [1, 2].map(|number| {
            Event::from(EventParts {
                aggregate_id: number.to_string(),
                global_position: number,
                ..EventParts::default()
            })
        });
        let mut tx = first.transaction().unwrap();
        assert_eq!(count(&mut tx, &Names::default(), "p").unwrap(), 0);
        let counted = std::thread::spawn(move || in_transaction(&mut second, |tx| count(tx, &Names::default(), "p")));
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
        let begun = Instant::now();
        while !observer.query_one(waits, &[]).unwrap().get::<_, bool>(0) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the second does not wait");
        }
        insert(&mut tx, &Names::default(), "p", &events[0], failed(&events[0]), 0).unwrap();
        tx.commit().unwrap();
        assert_eq!(counted.join().unwrap().unwrap(), 1);
    }
}
