//! The production worker: two projections, and the program that runs them.
//!
//! `worker --help` lists its commands and settings; `pupsourcing_orchestrator::cli` documents them.
//! `DATABASE_URL` is required; all other settings have defaults. The worker serves metrics, and
//! leaves gracefully on SIGTERM.

use std::process::ExitCode;

use pupsourcing_orchestrator::{BatchProjection, BoxError, Event, StreamId, Tx, cli};

fn main() -> ExitCode {
    cli::main(|worker| {
        let worker = worker.version(env!("CARGO_PKG_VERSION"));
        worker.batch_projection(EventTypeCounts).batch_projection(AggregateActivity).migration_sql(TABLES)
    })
}

/// Counts events by type.
pub(crate) struct EventTypeCounts;

impl BatchProjection for EventTypeCounts {
    fn name(&self) -> &'static str {
        "event_type_counts"
    }

    fn tables(&self) -> &[&str] {
        &["event_type_counts"]
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let types: Vec<&str> = events.iter().map(Event::event_type).collect();
        // Sorted by key, so workers that count the same types at the same time lock the rows in the
        // same order. They wait for one another, but never deadlock.
        tx.execute(
            "INSERT INTO event_type_counts AS c (event_type, events)
             SELECT t, count(*) FROM unnest($1::text[]) AS t GROUP BY t ORDER BY t
             ON CONFLICT (event_type) DO UPDATE SET events = c.events + excluded.events",
            &[&types],
        )?;
        Ok(events.len())
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        only_to_the_beginning(to)?;
        tx.execute("DELETE FROM event_type_counts", &[])?;
        Ok(())
    }
}

/// Tracks every aggregate: how many events it has, its version, and whether the events arrived in
/// order.
pub(crate) struct AggregateActivity;

impl BatchProjection for AggregateActivity {
    fn name(&self) -> &'static str {
        "aggregate_activity"
    }

    fn tables(&self) -> &[&str] {
        &["aggregate_activity"]
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let contexts: Vec<&str> = events.iter().map(Event::bounded_context).collect();
        let types: Vec<&str> = events.iter().map(Event::aggregate_type).collect();
        let ids: Vec<&str> = events.iter().map(Event::aggregate_id).collect();
        let versions: Vec<i64> = events.iter().map(Event::aggregate_version).collect();
        // An aggregate belongs to one worker, so no other worker changes its row meanwhile. The
        // rows are sorted by key nevertheless, so that neighbours in the index are written
        // together.
        tx.execute(
            "WITH event AS (
                 SELECT *, lag(version) OVER (PARTITION BY bounded_context, aggregate_type, aggregate_id ORDER BY n) AS before
                 FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) WITH ORDINALITY
                     AS event (bounded_context, aggregate_type, aggregate_id, version, n)
             )
             INSERT INTO aggregate_activity AS a (bounded_context, aggregate_type, aggregate_id, events, last_version, out_of_order)
             SELECT bounded_context, aggregate_type, aggregate_id, count(*), (array_agg(version ORDER BY n DESC))[1],
                    count(*) FILTER (WHERE version <> coalesce(event.before, known.last_version, 0) + 1)
             FROM event LEFT JOIN aggregate_activity AS known USING (bounded_context, aggregate_type, aggregate_id)
             GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
             ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO UPDATE SET
                 events = a.events + excluded.events,
                 last_version = excluded.last_version,
                 out_of_order = a.out_of_order + excluded.out_of_order",
            &[&contexts, &types, &ids, &versions],
        )?;
        Ok(events.len())
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        only_to_the_beginning(to)?;
        tx.execute("DELETE FROM aggregate_activity", &[])?;
        Ok(())
    }

    fn forget(&self, tx: &mut Tx<'_>, aggregate: &StreamId) -> Result<(), BoxError> {
        let StreamId { bounded_context, aggregate_type, aggregate_id } = aggregate;
        tx.execute(
            "DELETE FROM aggregate_activity WHERE (bounded_context, aggregate_type, aggregate_id) = ($1, $2, $3)",
            &[bounded_context, aggregate_type, aggregate_id],
        )?;
        Ok(())
    }
}

/// These read models do not contain positions, so they cannot be cleared in part.
fn only_to_the_beginning(to: i64) -> Result<(), BoxError> {
    if to == 0 { Ok(()) } else { Err("this read model can be rewound to the beginning only".into()) }
}

/// Checks for the tables first, because `CREATE TABLE IF NOT EXISTS` requires the privilege to
/// create even if the table exists.
pub(crate) const TABLES: &str = "
DO $$ BEGIN
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
