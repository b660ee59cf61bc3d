//! A read model that shows every mistake: one row per handled event, in the order of handling, and
//! nothing that would hide a repetition.

use std::time::Duration;

use postgres::{Client, GenericClient};
use pupsourcing_orchestrator::{BoxError, Event, NewEvent, Projection, Scope, StartAt, StreamId, Tx};

use super::cluster::assert_keys_are_covered;
use super::eventually;
use super::insert::insert;

/// Writes each event it handles into the table `ledger`.
pub(crate) struct Ledger {
    pub(crate) name: &'static str,
    pub(crate) scope: Scope,
    pub(crate) start_at: StartAt,
    /// How long handling one event takes.
    pub(crate) takes: Duration,
}

impl Ledger {
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, scope: Scope::all(), start_at: StartAt::Beginning, takes: Duration::ZERO }
    }

    pub(crate) fn create_table(client: &mut Client) {
        client
            .batch_execute(
                // The index is for tests that check repeatedly whether all events are there. It is
                // not unique, because a unique index would hide a repetition.
                "DO $$ BEGIN IF to_regclass('ledger') IS NULL THEN
                     CREATE TABLE ledger (seq bigserial PRIMARY KEY, projection text NOT NULL,
                         global_position bigint NOT NULL, aggregate_id text NOT NULL, aggregate_version bigint NOT NULL,
                         backend int NOT NULL DEFAULT pg_backend_pid());
                     CREATE INDEX ON ledger (projection, global_position);
                 END IF; END $$",
            )
            .unwrap();
    }
}

impl Projection for Ledger {
    fn name(&self) -> &str {
        self.name
    }

    fn scope(&self) -> Scope {
        self.scope.clone()
    }

    fn start_at(&self) -> StartAt {
        self.start_at
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        if !self.takes.is_zero() {
            crossbeam_channel::never::<()>().recv_timeout(self.takes).unwrap_err();
        }
        tx.execute(
            "INSERT INTO ledger (projection, global_position, aggregate_id, aggregate_version) VALUES ($1, $2, $3, $4)",
            &[&self.name, &event.global_position(), &event.aggregate_id(), &event.aggregate_version()],
        )?;
        Ok(())
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        tx.execute("DELETE FROM ledger WHERE projection = $1 AND global_position > $2", &[&self.name, &to])?;
        Ok(())
    }
}

/// How many events the projection has in its ledger.
pub(crate) fn handled(client: &mut impl GenericClient, projection: &str) -> i64 {
    client.query_one("SELECT count(*) FROM ledger WHERE projection = $1", &[&projection]).unwrap().get(0)
}

/// Waits until the projection has handled this many more events. Meanwhile it checks that the
/// checkpoints cover every key once.
#[track_caller]
pub(crate) fn await_progress(client: &mut Client, projection: &str, events: i64) {
    let goal = handled(client, projection) + events;
    eventually("events are handled", Duration::from_secs(20), || {
        assert_keys_are_covered(client);
        (handled(client, projection) >= goal).then_some(())
    });
}

/// Whether the projection has handled every event that currently exists.
pub(crate) fn is_complete(client: &mut impl GenericClient, projection: &str) -> bool {
    let sql = "SELECT NOT EXISTS (SELECT FROM events e WHERE NOT EXISTS (
                   SELECT FROM ledger l WHERE l.projection = $1 AND l.global_position = e.global_position))";
    client.query_one(sql, &[&projection]).unwrap().get(0)
}

/// Checks that every event was handled once, and those of each aggregate in the order of their
/// versions.
#[track_caller]
pub(crate) fn assert_exactly_once(client: &mut impl GenericClient, projection: &str) {
    let sql = "WITH l AS (SELECT *, lag(aggregate_version) OVER (PARTITION BY aggregate_id ORDER BY seq) AS before
                          FROM ledger WHERE projection = $1)
               SELECT (SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT FROM l WHERE l.global_position = e.global_position)),
                      (SELECT count(*) - count(DISTINCT global_position) FROM l),
                      (SELECT count(*) FROM l WHERE before >= aggregate_version)";
    let row = client.query_one(sql, &[&projection]).unwrap();
    let found: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(found, (0, 0, 0), "(missing, repeated, out of order) of {projection}");
}

/// Appends `count` events spread over `aggregates` aggregates with one plain statement, as a
/// foreign writer would. The versions continue from those that exist.
pub(crate) fn append_plainly(client: &mut impl GenericClient, count: i64, aggregates: i64) {
    let rows = "(SELECT 'thing-' || (i % $2::bigint) AS id, 1 + i / $2::bigint AS n, i
                 FROM generate_series(0::bigint, $1::bigint - 1) AS i) AS g";
    let version = "coalesce((SELECT max(aggregate_version) FROM events e
                   WHERE e.bounded_context = 'test' AND e.aggregate_type = 'Thing' AND e.aggregate_id = id), 0) + n";
    let columns = [("aggregate_id", "id"), ("aggregate_version", version), ("payload", r"'\x01'")];
    client.execute(&format!("{} ORDER BY i", insert(rows, &columns)), &[&count, &aggregates]).unwrap();
}

/// An aggregate, for the event store.
pub(crate) fn thing(id: &str) -> StreamId {
    StreamId::new("test", "Thing", id)
}

/// An event, for the event store.
pub(crate) fn happened() -> NewEvent {
    NewEvent::new("Happened", [1])
}
