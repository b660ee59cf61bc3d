//! Reads a long range.
//!
//! One query serves several batches: the server plans it once, and continues while the worker
//! receives a batch and hands it over. But as long as the query runs, vacuum cannot remove old
//! versions of rows that other sessions update, and updates of a read model become slower. So a
//! scan is short, and is used only when reading is the bottleneck.

use super::{Batch, End, EventReader, Range, ReadError};
use crate::store::session::Session;

/// The most batches of one scan.
const BATCHES: usize = 8;

impl EventReader {
    /// Whether a range is long enough for a scan. Heavy events are not scanned.
    pub(crate) fn is_worth_a_scan(&self, range: &Range) -> bool {
        self.end != End::Heavy && range.positions() > self.bounds.events as u64
    }

    /// Reads a range batch by batch, until no more batches are wanted, or the rest needs
    /// [`read`](Self::read).
    pub(crate) fn scan(
        &mut self,
        session: &mut Session,
        range: Range,
        mut is_next_wanted: impl FnMut(Batch) -> bool,
    ) -> Result<(), ReadError> {
        let mut tx = session.transaction()?;
        // A custom plan omits the conditions, on keys or types, that this range does not have.
        tx.batch_execute("SET LOCAL plan_cache_mode = force_custom_plan")?;
        let batches = self.batches_at_once();
        let limit = self.bounds.events.saturating_mul(batches);
        let mut rows = self.light.stream(&mut tx, self.wanted(&range, limit, self.light_bytes()))?;
        let mut left = Some(range);
        for _ in 0..batches {
            let Some(range) = left else { break };
            let batch = self.take_light(&mut rows, &range)?;
            // A row that was not added, because it is heavy or unreadable, has been sent already:
            // this query cannot continue with it.
            left = range.following(&batch).filter(|_| self.end == End::Reached);
            if !is_next_wanted(batch) {
                break;
            }
        }
        // The commit discards the remaining rows.
        drop(rows);
        Ok(tx.commit()?)
    }

    /// As many batches as weigh about as much as one batch may. This limits what is sent in vain if
    /// they are not wanted.
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
    use crate::event::Event;
    use crate::plan::KeySet;
    use crate::scope::Scope;
    use crate::store::events::Bounds;
    use crate::store::session::Sessions;
    use crate::store::{Names, testing};

    const BYTES: usize = 1_000;
    /// More than a batch may have, or less: an event may be too large by itself, or after others.
    const EVENT_BYTES: [usize; 2] = [1_800, 600];

    /// Reads a range as a reader does, batch by batch, and takes this many batches of a scan.
    fn read_all(
        session: &mut Session,
        reader: &mut EventReader,
        range: &Range,
        wanted: usize,
        batches: &mut Vec<Batch>,
    ) -> Result<(), ReadError> {
        let mut left = Some(range.clone());
        while let Some(range) = left.take() {
            if reader.is_worth_a_scan(&range) {
                left = Some(range.clone());
                let before = batches.len();
                reader.scan(session, range, |batch| {
                    left = left.take().and_then(|range| range.following(&batch));
                    batches.push(batch);
                    batches.len() < before + wanted
                })?;
                assert!(batches.len() <= before + wanted);
            } else {
                let batch = session.run(|client| reader.read(client, &range))?;
                left = range.following(&batch);
                batches.push(batch);
            }
        }
        Ok(())
    }

    #[test]
    fn every_event_of_a_range_is_read_once_and_within_the_bounds() {
        let mut client = testing::connect();
        client.batch_execute(&Names::default().schema_sql()).unwrap();
        // A payload that is NULL cannot be read.
        client.batch_execute("ALTER TABLE events ALTER payload DROP NOT NULL").unwrap();
        let weights = prop_oneof![10 => Just(0_usize), 10 => 0..20_usize, 1 => 100..2_000_usize];
        let event = (0..8_u8, weights, prop_oneof![60 => 0..4_i32, 1 => Just(4)]);
        let sizes = (1..6_usize, prop::sample::select(EVENT_BYTES.to_vec()));
        let cases = (prop::collection::vec(event, 0..150), sizes, any::<bool>(), 0..20_i64, 1..10_usize);
        let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
        let session = RefCell::new(Session::of(client, Sessions::Shared).unwrap());
        let outcome = TestRunner::new(config).run(&cases, |(events, (size, event_bytes), all_keys, after, wanted)| {
            let session = &mut *session.borrow_mut();
            let client = session.client();
            let fail = |error: postgres::Error| TestCaseError::fail(error.to_string());
            client.batch_execute("TRUNCATE events RESTART IDENTITY").map_err(fail)?;
            let ids: Vec<String> = events.iter().map(|(id, _, _)| id.to_string()).collect();
            let weights: Vec<i32> = events.iter().map(|(_, weight, _)| i32::try_from(*weight).unwrap()).collect();
            let columns: Vec<i32> = events.iter().map(|(_, _, column)| *column).collect();
            client
                .execute(
                    "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, payload, event_type,
                                         trace_id, metadata)
                     SELECT 'test', 'Thing', id, i, gen_random_uuid(),
                            CASE c WHEN 0 THEN convert_to(x, 'UTF8') WHEN 4 THEN NULL ELSE '' END, CASE c WHEN 1 THEN x ELSE 'Happened' END,
                            CASE c WHEN 2 THEN x END, CASE c WHEN 3 THEN jsonb_build_object('x', x) END
                     FROM unnest($1::text[], $2::int[], $3::int[]) WITH ORDINALITY AS event (id, weight, c, i),
                          repeat('x', weight) AS x ORDER BY i",
                    &[&ids, &weights, &columns],
                )
                .map_err(fail)?;
            let keys = if all_keys { KeySet::all() } else { KeySet::partition(0, 2) };
            let range = Range { keys, after, upto: after.max(i64::try_from(events.len()).unwrap() - 5) };
            let in_range: Vec<(i64, Option<usize>)> = client
                .query(
                    &Names::default().sql(
                        "SELECT global_position, octet_length(payload) + octet_length(bounded_context || aggregate_type
                                || aggregate_id || event_type || coalesce(trace_id, '') || coalesce(metadata::text, ''))
                         FROM {events} WHERE global_position > $1 AND global_position <= $2
                           AND $3::int4multirange @> {event_key}
                         ORDER BY 1",
                    ),
                    &[&range.after, &range.upto, &range.keys],
                )
                .map_err(fail)?
                .iter()
                .map(|row| (row.get(0), row.get::<_, Option<i32>>(1).map(|weight| usize::try_from(weight).unwrap())))
                .collect();
            let expected: Vec<(i64, usize)> = in_range
                .iter()
                .map_while(|(position, weight)| weight.filter(|weight| *weight <= event_bytes).map(|w| (*position, w)))
                .collect();
            let bounds = Bounds { events: size, bytes: BYTES, event_bytes };
            let mut reader =
                EventReader::prepare(client, &Names::default(), Scope::all(), bounds, false).map_err(fail)?;
            let mut batches = Vec::new();
            let outcome = if range.after < range.upto { read_all(session, &mut reader, &range, wanted, &mut batches) } else { Ok(()) };
            let unreadable = match outcome {
                Ok(()) => None,
                Err(ReadError::Event(event)) => Some(event.position),
                Err(ReadError::Database(error)) => return Err(fail(error)),
            };
            prop_assert_eq!(unreadable, in_range.get(expected.len()).map(|(position, _)| *position));
            let read: Vec<(i64, usize)> = batches
                .iter()
                .flat_map(|batch| &batch.events)
                .map(|event| (event.global_position(), event.weight()))
                .collect();
            prop_assert_eq!(read, expected);
            for batch in batches {
                let weight: usize = batch.events.iter().map(Event::weight).sum();
                prop_assert!(batch.events.len() <= size && (weight <= BYTES || batch.events.len() == 1));
            }
            Ok(())
        });
        assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}
