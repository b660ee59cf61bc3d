//! Going through a long range.
//!
//! Several batches come of one query: the server plans it once, and goes on while the last batch is taken in and handed over. But until
//! it ends nothing can be cleaned up of what others update: rows that are updated time and again, as those of a read model, are found
//! ever more slowly. So it is short, and only for where reading is what is waited for.

use postgres::{Client, IsolationLevel};

use super::{Batch, EventReader, Range};

/// How many batches at the most.
const BATCHES: usize = 8;

impl EventReader {
    /// Whether a range is long enough for a scan to be worth its beginning. Heavy events are read by themselves.
    pub(crate) fn is_worth_a_scan(&self, range: &Range) -> bool {
        !self.is_heavy && range.positions() > self.bounds.events as u64
    }

    /// Goes through a range batch by batch, until one is the last that is wanted, or the rest is to be read in another way.
    pub(crate) fn scan(
        &mut self,
        client: &mut Client,
        range: Range,
        mut is_next_wanted: impl FnMut(Batch) -> bool,
    ) -> Result<(), postgres::Error> {
        let mut tx =
            client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(true).start()?;
        // What is not asked for in this range, keys or types, is then not looked at in each row.
        tx.batch_execute("SET LOCAL plan_cache_mode = force_custom_plan")?;
        let batches = self.batches_at_once();
        let limit = self.bounds.events.saturating_mul(batches);
        let mut rows = tx.query_raw(&self.light, self.parameters(&range, limit, self.light_bytes()).all())?;
        let mut left = Some(range);
        for _ in 0..batches {
            let Some(range) = left else { break };
            let batch = self.take_light(&mut rows, &range)?;
            // What was sent and not taken in will not be sent again.
            left = range.following(&batch).filter(|_| !self.is_heavy);
            if !is_next_wanted(batch) {
                break;
            }
        }
        // The rest of the rows, if there is any, goes unread by while the commit is waited for.
        drop(rows);
        tx.commit()
    }

    /// So many that what is sent in vain, if they are not wanted, is about the bytes of one batch at its bounds.
    fn batches_at_once(&self) -> usize {
        (self.bounds.bytes / self.room.bytes().max(1)).clamp(1, BATCHES)
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

    /// Reads a range as a reader does, batch by batch, and wants so many of a scan.
    fn read_all(
        client: &mut Client,
        reader: &mut EventReader,
        range: &Range,
        wanted: usize,
    ) -> Result<Vec<Batch>, postgres::Error> {
        let mut batches = Vec::new();
        let mut left = Some(range.clone());
        while let Some(range) = left.take() {
            if reader.is_worth_a_scan(&range) {
                left = Some(range.clone());
                let before = batches.len();
                reader.scan(client, range, |batch| {
                    left = left.take().and_then(|range| range.following(&batch));
                    batches.push(batch);
                    batches.len() < before + wanted
                })?;
                assert!(batches.len() <= before + wanted);
            } else {
                let batch = reader.read(client, &range)?;
                left = range.following(&batch);
                batches.push(batch);
            }
        }
        Ok(batches)
    }

    #[test]
    fn every_event_of_a_range_is_read_once_and_within_the_bounds() {
        let mut client = testing::connect();
        client.batch_execute(&Names::default().schema_sql()).unwrap();
        let weights = prop_oneof![10 => Just(0_usize), 10 => 0..20_usize, 1 => 100..2_000_usize];
        let cases =
            (prop::collection::vec((0..8_u8, weights), 0..150), 1..6_usize, any::<bool>(), 0..20_i64, 1..10_usize);
        let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
        let client = RefCell::new(client);
        let outcome = TestRunner::new(config).run(&cases, |(events, size, all_keys, after, wanted)| {
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
            let batches = if range.after < range.upto { read_all(client, &mut reader, &range, wanted).map_err(fail)? } else { Vec::new() };
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
