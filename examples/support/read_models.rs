//! Two read models of any events, and their tables.

use pupsourcing_orchestrator::{BatchProjection, BoxError, Database, Event, Projection, Tx};

/// Counts events by type.
pub(crate) struct EventTypeCounts;

impl BatchProjection for EventTypeCounts {
    fn name(&self) -> &'static str {
        "event_type_counts"
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let types: Vec<&str> = events.iter().map(Event::event_type).collect();
        // Sorted, so that workers which count the same types at once take the row locks in one order.
        tx.execute(
            "INSERT INTO event_type_counts AS c (event_type, events)
             SELECT t, count(*) FROM unnest($1::text[]) AS t GROUP BY t ORDER BY t
             ON CONFLICT (event_type) DO UPDATE SET events = c.events + excluded.events",
            &[&types],
        )?;
        Ok(events.len())
    }
}

/// Follows every aggregate: how many events it has, its version, and whether they came in order.
pub(crate) struct AggregateActivity;

impl Projection for AggregateActivity {
    fn name(&self) -> &'static str {
        "aggregate_activity"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        tx.execute(
            "INSERT INTO aggregate_activity AS a (bounded_context, aggregate_type, aggregate_id, events, last_version, out_of_order)
             VALUES ($1, $2, $3, 1, $4, CASE WHEN $4::bigint = 1 THEN 0 ELSE 1 END)
             ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO UPDATE SET
                 events = a.events + 1,
                 last_version = excluded.last_version,
                 out_of_order = a.out_of_order + CASE WHEN excluded.last_version = a.last_version + 1 THEN 0 ELSE 1 END",
            &[&event.bounded_context(), &event.aggregate_type(), &event.aggregate_id(), &event.aggregate_version()],
        )?;
        Ok(())
    }
}

/// Creates the tables, where they are not there yet.
pub(crate) fn create(database: &Database) -> Result<(), BoxError> {
    Ok(database.connect()?.batch_execute(TABLES)?)
}

/// Looks the tables up first: `CREATE TABLE IF NOT EXISTS` asks for the privilege to create even where there is nothing to create.
/// The lock is for workers that start at the same time.
const TABLES: &str = "
DO $$ BEGIN
PERFORM pg_advisory_xact_lock(hashtextextended('the worker example''s read models', 0));
IF to_regclass('event_type_counts') IS NULL THEN
    CREATE TABLE event_type_counts (event_type text PRIMARY KEY, events bigint NOT NULL);
END IF;
IF to_regclass('aggregate_activity') IS NULL THEN
    CREATE TABLE aggregate_activity (
        bounded_context text,
        aggregate_type text,
        aggregate_id text,
        events bigint NOT NULL,
        last_version bigint NOT NULL,
        out_of_order bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (bounded_context, aggregate_type, aggregate_id)
    );
END IF;
END $$";
