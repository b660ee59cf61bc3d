//! Going through a long range.
//!
//! Many batches are fetched of one query: the server plans it once, and goes on where it stopped. But a transaction is open meanwhile, and
//! until it ends nothing can be cleaned up of what others update: rows that are updated time and again, as those of a read model, are
//! found ever more slowly. So it is short, and only for where reading is what is waited for.

use std::time::{Duration, Instant};

use postgres::{Client, IsolationLevel, Portal, Transaction};

use super::{Batch, EventReader, Range};

/// How many batches at the most. To begin costs about as much as one fetch does, and the planner has to know that not all is wanted.
const BATCHES: usize = 16;
const LONG_ENOUGH: Duration = Duration::from_millis(50);

/// Reads a range batch by batch.
pub(crate) struct Scan<'c> {
    transaction: Transaction<'c>,
    portal: Portal,
    reader: &'c mut EventReader,
    /// What is left of it, if anything is.
    range: Option<Range>,
    batches_left: usize,
    begun: Instant,
}

impl EventReader {
    /// Whether a range is long enough for a scan to be worth its beginning. Heavy events are read by themselves.
    pub(crate) fn is_worth_a_scan(&self, range: &Range) -> bool {
        !self.is_heavy && range.positions() > self.bounds.events as u64
    }

    /// Begins to go through a range.
    pub(crate) fn scan<'c>(&'c mut self, client: &'c mut Client, range: Range) -> Result<Scan<'c>, postgres::Error> {
        let begun = Instant::now();
        let mut transaction =
            client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(true).start()?;
        // What is not asked for in this range, keys or types, is then not looked at in each row.
        transaction.batch_execute("SET LOCAL plan_cache_mode = force_custom_plan")?;
        let limit = self.bounds.events.saturating_mul(BATCHES);
        let portal = transaction.bind(&self.light, &self.parameters(&range, limit, self.light_bytes()).all())?;
        Ok(Scan { transaction, portal, reader: self, range: Some(range), batches_left: BATCHES, begun })
    }
}

impl Scan<'_> {
    /// The next events; `None` once the range is exhausted, or the rest of it is to be read in another way.
    pub(crate) fn next(&mut self) -> Result<Option<Batch>, postgres::Error> {
        let Some(range) = self.range.take_if(|_| self.batches_left > 0 && self.begun.elapsed() < LONG_ENOUGH) else {
            return Ok(None);
        };
        let rows = i32::try_from(self.reader.bounds.events).unwrap_or(i32::MAX);
        let rows = self.transaction.query_portal_raw(&self.portal, rows)?;
        let batch = self.reader.take_light(rows, &range)?;
        self.batches_left -= 1;
        // What was sent and not taken in will not be sent again.
        self.range = range.following(&batch).filter(|_| !self.reader.is_heavy);
        Ok(Some(batch))
    }

    /// Ends it; dropping it does as well, but counts as a rollback.
    pub(crate) fn close(self) -> Result<(), postgres::Error> {
        self.transaction.commit()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestCaseError, TestRunner};

    use super::*;
    use crate::plan::KeySet;
    use crate::projection::Scope;
    use crate::store::events::Bounds;
    use crate::store::{Names, testing};

    const BYTES: usize = 1_000;

    /// Reads a range as a reader does, batch by batch.
    fn read_all(client: &mut Client, reader: &mut EventReader, range: &Range) -> Result<Vec<Batch>, postgres::Error> {
        let mut batches = Vec::new();
        let mut left = Some(range.clone());
        while let Some(range) = left.take() {
            if reader.is_worth_a_scan(&range) {
                left = Some(range.clone());
                let mut scan = reader.scan(client, range)?;
                while let Some(batch) = scan.next()? {
                    left = left.and_then(|range| range.following(&batch));
                    batches.push(batch);
                }
                scan.close()?;
            } else {
                let batch = reader.read(client, &range)?;
                left = range.following(&batch);
                batches.push(batch);
            }
        }
        Ok(batches)
    }

    #[test]
    fn a_scan_that_has_taken_long_leaves_the_rest_to_another() {
        let mut client = testing::connect();
        client.batch_execute(&Names::default().schema_sql()).unwrap();
        let bounds = Bounds { events: 1, bytes: BYTES };
        let mut reader = EventReader::prepare(&mut client, &Names::default(), Scope::all(), bounds, false).unwrap();
        let range = Range { keys: KeySet::all(), after: 0, upto: 9 };
        let mut scan = reader.scan(&mut client, range.clone()).unwrap();
        scan.begun -= LONG_ENOUGH;
        assert!(scan.next().unwrap().is_none());
        drop(scan);
        let end = reader.scan(&mut client, range).unwrap().next().unwrap().map(|batch| batch.end);
        assert_eq!(end, Some(9), "there is nothing in it");
    }

    #[test]
    fn every_event_of_a_range_is_read_once_and_within_the_bounds() {
        let mut client = testing::connect();
        client.batch_execute(&Names::default().schema_sql()).unwrap();
        let weights = prop_oneof![10 => Just(0_usize), 10 => 0..20_usize, 1 => 100..2_000_usize];
        let cases = (prop::collection::vec((0..8_u8, weights), 0..150), 1..6_usize, any::<bool>(), 0..20_i64);
        let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
        let client = RefCell::new(client);
        let outcome = TestRunner::new(config).run(&cases, |(events, size, all_keys, after)| {
            let client = &mut *client.borrow_mut();
            let fail = |error: postgres::Error| TestCaseError::fail(error.to_string());
            client.batch_execute("TRUNCATE events RESTART IDENTITY").map_err(fail)?;
            let (ids, weights): (Vec<_>, Vec<_>) =
                events.iter().map(|(id, weight)| (id.to_string(), i32::try_from(*weight).unwrap())).unzip();
            client
                .execute(
                    "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
                     SELECT 'test', 'Thing', id, i, gen_random_uuid(), 'Happened', convert_to(repeat('x', weight), 'UTF8')
                     FROM unnest($1::text[], $2::int[]) WITH ORDINALITY AS event (id, weight, i) ORDER BY i",
                    &[&ids, &weights],
                )
                .map_err(fail)?;
            let keys = if all_keys { KeySet::all() } else { KeySet::partition(0, 2) };
            let range = Range { keys, after, upto: after.max(i64::try_from(events.len()).unwrap() - 5) };
            let expected: Vec<(i64, i32)> = client
                .query(
                    "SELECT global_position, octet_length(payload) FROM events
                     WHERE global_position > $1 AND global_position <= $2
                       AND $3::int4multirange @> (hashtextextended(aggregate_id, 0) & 65535)::int4
                     ORDER BY 1",
                    &[&range.after, &range.upto, &range.keys],
                )
                .map_err(fail)?
                .iter()
                .map(|row| (row.get(0), row.get(1)))
                .collect();
            let bounds = Bounds { events: size, bytes: BYTES };
            let mut reader =
                EventReader::prepare(client, &Names::default(), Scope::all(), bounds, false).map_err(fail)?;
            let batches = if range.after < range.upto { read_all(client, &mut reader, &range).map_err(fail)? } else { Vec::new() };
            let read: Vec<(i64, i32)> = batches
                .iter()
                .flat_map(|batch| &batch.events)
                .map(|event| (event.global_position(), i32::try_from(event.payload().len()).unwrap()))
                .collect();
            prop_assert_eq!(read, expected);
            for batch in batches {
                let weight: usize = batch.events.iter().map(|event| event.payload().len()).sum();
                prop_assert!(batch.events.len() <= size && (weight <= BYTES || batch.events.len() == 1));
            }
            Ok(())
        });
        assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}
