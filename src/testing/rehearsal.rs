//! Lets projections handle events in a certain order, on one thread. A course and its seed
//! determine which partition is next, how large its batches are, and which of them are rolled back.

use std::fmt;
use std::sync::Arc;

use fastrand::Rng;

use super::database::TestDatabase;
use super::error::Error;
use super::rows::{Rows, Tables};
use crate::error::{BoxError, describe_any};
use crate::event::Event;
use crate::plan::{KEY_SPACE, KeySet};
use crate::projection::{self, Failed, Handler, Work};
use crate::scope::StartAt;
use crate::store::Names;
use crate::store::events::{Bounds, EventReader, Range};
use crate::store::session::{Session, Sessions};

use crate::tx::{About, KeptStatements, Memory, Tx};

/// The order in which the events are handled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    pub(super) partitions: usize,
    /// The most events of one batch.
    pub(super) batch: usize,
    pub(super) order: Order,
    /// Whether some batches are rolled back, and handled again.
    pub(super) rolls_back: bool,
    pub(super) seed: u64,
}

/// Which partition is next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// The first partition, until it has handled everything.
    FirstFirst,
    /// The last partition, until it has handled everything.
    LastFirst,
    /// A random partition.
    InTurns,
}

impl Course {
    /// All events in order, in few large batches.
    pub(super) const REFERENCE: Self =
        Self { partitions: 1, batch: 2_000, order: Order::FirstFirst, rolls_back: false, seed: 0 };
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match self.order {
            _ if self.partitions == 1 => "",
            Order::FirstFirst => ", one after the other",
            Order::LastFirst => ", one after the other from the last",
            Order::InTurns => ", in turns",
        };
        let (partitions, batch, seed) = (self.partitions, self.batch, self.seed);
        write!(f, "with {partitions} partitions{order}, batches of at most {batch} events, and rollbacks (seed {seed})")
    }
}

/// The events, and the projections that handle them.
pub(super) struct Stage<'a> {
    /// The database of which each course gets a copy.
    original: TestDatabase,
    projections: &'a [Arc<dyn Handler>],
    /// The keys of the aggregates, ascending.
    keys: Vec<i32>,
    /// The position of the last event.
    end: i64,
}

impl<'a> Stage<'a> {
    /// Creates a stage. Copies the events into `original`, which has none.
    pub(super) fn new(
        original: TestDatabase,
        events: &TestDatabase,
        projections: &'a [Arc<dyn Handler>],
    ) -> Result<Self, Error> {
        let copied = copy_events(events, &original).map_err(Error::cannot("copy the events"));
        let (keys, end) = copied?;
        Ok(Self { original, projections, keys, end })
    }

    /// Executes a course on a copy of the database, and returns the content of its tables
    /// afterwards.
    pub(super) fn play(&self, course: Course, tables: &Tables) -> Result<Rows, Error> {
        let copy = self.original.copy()?;
        self.rehearse(&copy, course)?;
        let rows = tables.read(&mut copy.database().client()?)?;
        copy.remove()?;
        Ok(rows)
    }

    fn rehearse(&self, copy: &TestDatabase, course: Course) -> Result<(), Error> {
        let mut reading = Session::of(copy.database().client()?, Sessions::Shared)?;
        let mut handling = copy.database().client()?;
        let failed = Error::cannot::<postgres::Error>("prepare the reading of events");
        let mut parts = self.parts(&mut reading, course).map_err(failed)?;
        let mut rng = Rng::with_seed(course.seed);
        while !parts.is_empty() {
            let next = match course.order {
                Order::FirstFirst => 0,
                Order::LastFirst => parts.len() - 1,
                Order::InTurns => rng.usize(..parts.len()),
            };
            let Some(part) = parts.get_mut(next) else { break };
            let batch = reading.run(|client| part.reader.read(client, &part.range));
            let batch = batch.map_err(|error| Error::from(error.into_error()))?;
            let transaction = handling.transaction().map_err(Error::cannot("begin a transaction"))?;
            // No statements are kept, because one that became outdated would fail here.
            let (mut kept, mut memory) = (KeptStatements::default(), Memory::default());
            let (projection, is_pause_requested) = (part.projection.name(), || false);
            let about = About { projection, generation: 1, is_replay: false, is_pause_requested: &is_pause_requested };
            let mut tx = Tx::new(transaction, &mut kept, &mut memory, about);
            let is_rolled_back = course.rolls_back && !batch.events.is_empty() && rng.u8(..3) == 0;
            let count = if is_rolled_back { rng.usize(1..=batch.events.len()) } else { batch.events.len() };
            handle(part.projection, &mut tx, batch.events.get(..count).unwrap_or(&batch.events))?;
            if is_rolled_back {
                // The same events are handled again. Another part may be next.
                tx.rollback().map_err(Error::cannot("roll a transaction back"))?;
                continue;
            }
            tx.commit().map_err(|error| failure(part.projection, &batch.events, &error.into()))?;
            match part.range.following(&batch) {
                Some(rest) => part.range = rest,
                None => drop(parts.remove(next)),
            }
        }
        Ok(())
    }

    fn parts(&self, reading: &mut Session, course: Course) -> Result<Vec<Part<'a>>, postgres::Error> {
        let bounds = Bounds { events: course.batch, bytes: usize::MAX, event_bytes: usize::MAX };
        let mut parts = Vec::new();
        for projection in self.projections {
            let after = match projection.start_at() {
                StartAt::Beginning => 0,
                StartAt::Position(position) => position,
                StartAt::End => self.end,
            };
            for keys in cut(&self.keys, course.partitions) {
                let range = Range { keys, after, upto: self.end };
                let (names, scope) = (Names::default(), projection.scope());
                let reader = EventReader::prepare(reading.client(), &names, scope, bounds, false)?;
                parts.push(Part { projection: &**projection, reader, range });
            }
        }
        Ok(parts)
    }
}

/// A partition of a projection, and the range of its remaining events.
struct Part<'a> {
    projection: &'a dyn Handler,
    reader: EventReader,
    range: Range,
}

/// Cuts the key space so that each part has about the same number of aggregates. Workers cut it
/// into equal ranges, with which two aggregates of a test might always be in the same part.
fn cut(keys: &[i32], parts: usize) -> Vec<KeySet> {
    let inner = (1..parts).filter_map(|part| keys.get(keys.len() * part / parts).copied());
    let mut bounds: Vec<i32> = [0].into_iter().chain(inner).chain([KEY_SPACE]).collect();
    bounds.dedup();
    bounds.windows(2).map(|pair| KeySet::from_ranges(pair.iter().copied().zip(pair.iter().skip(1).copied()))).collect()
}

/// Copies all events, and returns the keys of their aggregates and the last position.
fn copy_events(from: &TestDatabase, to: &TestDatabase) -> Result<(Vec<i32>, i64), BoxError> {
    let (mut from, mut to) = (from.database().client()?, to.database().client()?);
    let names = Names::default();
    for table in ["{events}", "{aggregate_heads}"] {
        let mut rows = from.copy_out(&names.sql(&format!("COPY {table} TO STDOUT (FORMAT binary)")))?;
        let mut writer = to.copy_in(&names.sql(&format!("COPY {table} FROM STDIN (FORMAT binary)")))?;
        std::io::copy(&mut rows, &mut writer)?;
        writer.finish()?;
    }
    let keys = names.sql("SELECT DISTINCT {event_key} FROM {events} ORDER BY 1");
    let keys = to.query(&keys, &[])?.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let end = names.sql("SELECT coalesce(max(global_position), 0) FROM {events}");
    let end: i64 = to.query_one(&end, &[])?.try_get(0)?;
    // A handler may append events, whose positions must be higher.
    let follow = "SELECT setval(pg_get_serial_sequence('{events}', 'global_position'), $1) WHERE $1 > 0";
    to.execute(&names.sql(follow), &[&end])?;
    Ok((keys, end))
}

/// Handles all events, as a runner does.
fn handle(projection: &dyn Handler, tx: &mut Tx<'_>, events: &[Event]) -> Result<(), Error> {
    let Work::Writes(handler) = projection.work() else { return Ok(()) };
    let mut rest = events;
    while !rest.is_empty() {
        let count = projection::handle(handler, tx, rest)
            .map_err(|Failed { error, at }| failure(projection, rest.get(at.unwrap_or(0)..).unwrap_or(rest), &error))?;
        rest = rest.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Creates the error of a projection that failed while it handled `events`.
fn failure(projection: &dyn Handler, events: &[Event], error: &BoxError) -> Error {
    let event = events.first().map_or_else(String::new, |event| {
        format!(
            " from {} of {}/{}/{} at global position {} on",
            event.event_type(),
            event.bounded_context(),
            event.aggregate_type(),
            event.aggregate_id(),
            event.global_position()
        )
    });
    Error::new(format!("projection {:?} failed{event}: {}", projection.name(), describe_any(&**error)))
}
