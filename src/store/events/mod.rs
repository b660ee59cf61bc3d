//! Reads events in batches: [`batch`] has the requests and the results, [`columns`] how an event is
//! selected and read from a row, [`scan`] how one query serves several batches.

mod batch;
pub(super) mod columns;
mod scan;

use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Row, RowIter};

use self::columns::{IS_LAST, KEY_OR_NULL, POSITION};
use super::key;
use super::names::Names;
use super::prepared::{Parameters, Prepared};
use crate::error::describe;
use crate::event::{Event, EventBuffer, Room};
use crate::plan::KeySet;
use crate::scope::Scope;

pub(crate) use batch::{Batch, Bounds, Range, ReadError, UnreadableEvent};

/// The most that a light event may weigh, in equal shares of a batch's bytes. If all events of a
/// batch weigh that much, the server sends this many times the bytes of a batch, once.
const LIGHT_SHARES: usize = 4;

/// The bounds of the positions; the keys, the aggregate types and the contexts; the number of
/// events; the bytes of a light event or of all events together, and of one event; the event types,
/// and what the metadata contains.
type Wanted = (
    i64,
    i64,
    Option<KeySet>,
    Option<Vec<String>>,
    Option<Vec<String>>,
    i64,
    i64,
    i64,
    Option<Vec<String>>,
    Option<String>,
);

/// Reads events of a scope within bounds, on the connection on which it was prepared.
///
/// Adding up the weights on the server, row by row, doubles the cost of a read, so the first
/// statement does not do it. It sends an event whole if it is *light*, that is, within a few equal
/// shares of the bytes, and as a stub otherwise. The batch ends before the first stub, or where the
/// bytes are used up; later rows are dropped. The second statement adds up the weights, and is used
/// only if events are heavy. An event that is too large by itself is never sent.
pub(crate) struct EventReader {
    light: Prepared<Wanted>,
    weighed: Prepared<Wanted>,
    metadata: Option<String>,
    scope: Scope,
    bounds: Bounds,
    gives_keys: bool,
    /// Where the rows of the last batch ended.
    end: End,
    /// How much memory the last batch took.
    room: Room,
}

impl EventReader {
    /// Prepares a reader. Computing the keys takes a tenth of the server's time, so a reader does
    /// it only if asked to.
    pub(crate) fn prepare(
        client: &mut Client,
        names: &Names,
        scope: Scope,
        bounds: Bounds,
        gives_keys: bool,
    ) -> Result<Self, postgres::Error> {
        let key = if gives_keys { key::event_key() } else { "NULL::int4".to_owned() };
        let matching = matching(names);
        let light = columns::withheld_unless("weight <= $7");
        let light = format!("SELECT {light}, {key} FROM ({matching}) AS matching ORDER BY global_position");
        let weighed = columns::withheld_unless("weight <= $8");
        let weighed = format!(
            "SELECT {weighed}, {key}, is_last FROM (
                 SELECT *, sum(weight) OVER (ORDER BY global_position ROWS UNBOUNDED PRECEDING) AS total,
                        lag(global_position) OVER (ORDER BY global_position) IS NULL AS is_first,
                        lead(global_position) OVER (ORDER BY global_position) IS NULL AS is_last
                 FROM ({matching}) AS matching) AS weighed
             WHERE total <= $7 OR is_first ORDER BY global_position"
        );
        Ok(Self {
            light: Prepared::on(client, &light)?,
            weighed: Prepared::on(client, &weighed)?,
            metadata: scope.metadata_object().map(|object| object.to_string()),
            scope,
            bounds,
            gives_keys,
            end: End::Reached,
            room: Room::default(),
        })
    }

    /// Reads the first events of a range.
    pub(crate) fn read(&mut self, client: &mut Client, range: &Range) -> Result<Batch, ReadError> {
        if self.end != End::Heavy {
            let batch = self.read_light(client, range)?;
            if !batch.events.is_empty() || batch.end == range.upto {
                return Ok(batch);
            }
        }
        self.read_weighed(client, range)
    }

    /// Reads up to the first heavy event.
    fn read_light(&mut self, client: &mut Client, range: &Range) -> Result<Batch, ReadError> {
        let mut rows = self.light.stream(client, self.wanted(range, self.bounds.events, self.light_bytes()))?;
        self.take_light(&mut rows, range)
    }

    /// The greatest weight of a light event.
    fn light_bytes(&self) -> usize {
        (self.bounds.bytes / self.bounds.events).saturating_mul(LIGHT_SHARES).min(self.bounds.event_bytes)
    }

    /// Adds the rows of a batch, up to the first heavy event. They are the first rows of the range.
    fn take_light(&mut self, rows: &mut RowIter<'_>, range: &Range) -> Result<Batch, ReadError> {
        let (heavy, light) = (self.bounds.bytes, self.light_bytes());
        let mut found = self.nothing_found();
        let mut end = End::Reached;
        let mut total = 0;
        while end == End::Reached
            && found.events.len() < self.bounds.events
            && let Some(row) = rows.next()?
        {
            let weight = columns::weight(&row)?;
            total += weight;
            end = if weight > light || total > heavy { End::Heavy } else { self.take(&mut found, &row, weight)? };
        }
        self.end = end;
        Ok(self.batch(found, range, end == End::Reached))
    }

    fn read_weighed(&mut self, client: &mut Client, range: &Range) -> Result<Batch, ReadError> {
        let mut found = self.nothing_found();
        let mut nothing_followed = true;
        let mut end = End::Reached;
        let mut rows = self.weighed.stream(client, self.wanted(range, self.bounds.events, self.bounds.bytes))?;
        while end == End::Reached
            && let Some(row) = rows.next()?
        {
            let weight = columns::weight(&row)?;
            end = self.take(&mut found, &row, weight)?;
            nothing_followed = row.try_get(IS_LAST)?;
        }
        drop(rows);
        // The server leaves out the events that exceed the bytes.
        self.end = if nothing_followed { end } else { End::Heavy };
        Ok(self.batch(found, range, self.end == End::Reached))
    }

    /// Adds a row, or returns that the batch ends before it. The first row has to be readable.
    fn take(&self, found: &mut Found, row: &Row, weight: usize) -> Result<End, ReadError> {
        let problem = if weight > self.bounds.event_bytes {
            Some(format!("it has {weight} bytes, and max_event_bytes is {}", self.bounds.event_bytes))
        } else {
            columns::push(&mut found.events, row).err().map(|error| describe(&error))
        };
        match problem {
            None if self.gives_keys => found.keys.push(row.try_get(KEY_OR_NULL)?),
            None => {}
            Some(_) if found.events.len() > 0 => return Ok(End::Unreadable),
            Some(problem) => {
                return Err(ReadError::Event(UnreadableEvent { position: row.try_get(POSITION)?, problem }));
            }
        }
        Ok(End::Reached)
    }

    fn wanted<'a>(&'a self, range: &'a Range, limit: usize, bytes: usize) -> <Wanted as Parameters>::Values<'a> {
        let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let Scope { aggregate_types, bounded_contexts, event_types, .. } = &self.scope;
        (
            range.after,
            range.upto,
            // If all keys are requested, none has to be computed.
            Some(&range.keys).filter(|keys| **keys != KeySet::all()),
            aggregate_types.as_deref(),
            bounded_contexts.as_deref(),
            whole(limit),
            whole(bytes),
            whole(self.bounds.event_bytes),
            event_types.as_deref(),
            self.metadata.as_deref(),
        )
    }

    /// An empty buffer with as much room as the last batch took.
    fn nothing_found(&self) -> Found {
        Found { events: EventBuffer::with_room(self.room), keys: Vec::new() }
    }

    /// Makes a batch of what was found. `is_all` means that no event was left out.
    fn batch(&mut self, Found { events, keys }: Found, range: &Range, is_all: bool) -> Batch {
        self.room = events.room();
        let is_exhausted = is_all && events.len() < self.bounds.events;
        let events = Event::all(events);
        let end = match events.last() {
            _ if is_exhausted => range.upto,
            Some(last) => last.global_position(),
            None => range.after,
        };
        Batch { events, keys, end }
    }
}

/// The part of a batch that has been read.
struct Found {
    events: EventBuffer,
    keys: Vec<i32>,
}

/// Where the rows of a batch end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// At the end of the range, or at the requested number of events.
    Reached,
    /// Before a heavy event.
    Heavy,
    /// Before an event that cannot be read.
    Unreadable,
}

/// Which events match, in which order and at most how many, each with its weight.
///
/// The `coalesce` only changes the planner's estimate. The planner assumes that a bare `@>` matches
/// hardly any row, and would scan and sort the rest of the table instead of walking the index to
/// the limit. It does not merge a subquery that has a limit, so the weight is computed once.
fn matching(names: &Names) -> String {
    names.sql_with(
        "SELECT *, {weight} AS weight FROM {events} WHERE global_position > $1 AND global_position <= $2
         AND ($3::int4multirange IS NULL OR coalesce($3::int4multirange @> {event_key}, false))
         AND ($4::text[] IS NULL OR aggregate_type = ANY ($4)) AND ($5::text[] IS NULL OR bounded_context = ANY ($5))
         AND ($9::text[] IS NULL OR event_type = ANY ($9)) AND ($10::text IS NULL OR coalesce(metadata::jsonb @> $10::jsonb, false))
         ORDER BY global_position LIMIT $6",
        &[("weight", &columns::weight_sql())],
    )
}
