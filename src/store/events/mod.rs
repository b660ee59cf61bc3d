//! Reading events.

mod scan;

use std::error::Error as StdError;

use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{FromSql, ToSql, Type};
use postgres::{Client, GenericClient, Row, RowIter, Statement};

use super::names::Names;
use crate::error::{Error, describe};
use crate::event::{Event, EventBuffer, EventColumns, Room};
use crate::plan::KeySet;
use crate::projection::Scope;

/// Where the columns of an event are in a row, in the order [`push`] expects them.
const POSITION: usize = 0;
const WEIGHT: usize = 1;
const KEY_OR_NULL: usize = 15;
const IS_LAST: usize = 16;

/// The columns that may be large. The others are of a fixed size.
const LARGE: [&str; 9] = [
    "bounded_context",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "payload",
    "trace_id",
    "correlation_id",
    "causation_id",
    "metadata",
];

/// The columns of an event, as they are selected; the large ones are withheld where this condition
/// does not hold.
fn columns(weight: &str, sent_if: Option<&str>) -> String {
    let columns = "aggregate_version, event_id, event_version, created_at";
    let large = LARGE.map(|column| match sent_if {
        Some(condition) => format!("CASE WHEN {condition} THEN {column} END"),
        None => column.to_owned(),
    });
    format!("global_position, {weight}, {columns}, {}", large.join(", "))
}

/// An event's key.
const KEY: &str = "(hashtextextended(aggregate_id, 0) & 65535)::int4";

/// What counts against `batch_bytes`: the bytes that arrive. The length of a text or a payload is
/// known without it being read; the metadata have to be, for they are stored compressed and in
/// another form.
fn weight_sql() -> String {
    LARGE
        .map(|column| match column {
            "metadata" => "coalesce(octet_length(metadata::text), 0)".to_owned(),
            _ => format!("coalesce(octet_length({column}), 0)::bigint"),
        })
        .join(" + ")
}

/// If all the events of a batch are as heavy as a light one may be, so many times its bytes are sent, once.
const LIGHT_SHARES: usize = 4;

/// Which events are matched, in which order and how many at the most.
///
/// The `coalesce` changes nothing but the planner's estimate: it takes a bare `@>` to match next to nothing, and would rather scan and sort
/// all of the rest of the table than walk the index to the limit.
fn matching(names: &Names) -> String {
    format!(
        "FROM {} WHERE global_position > $1 AND global_position <= $2
         AND ($3::int4multirange IS NULL OR coalesce($3::int4multirange @> {KEY}, false))
         AND ($4::text[] IS NULL OR aggregate_type = ANY ($4)) AND ($5::text[] IS NULL OR bounded_context = ANY ($5))
         ORDER BY global_position LIMIT $6",
        names.events()
    )
}

const PARAMETER_TYPES: [Type; 8] = [
    Type::INT8,
    Type::INT8,
    Type::INT4MULTI_RANGE,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT8,
    Type::INT8,
    Type::INT8,
];

/// What both statements are executed with.
struct Parameters<'a> {
    range: &'a Range,
    keys: Option<&'a KeySet>,
    scope: &'a Scope,
    limit: i64,
    bytes: i64,
    event_bytes: i64,
}

impl Parameters<'_> {
    fn all(&self) -> [&(dyn ToSql + Sync); 8] {
        let Scope { aggregate_types, bounded_contexts } = self.scope;
        let Range { after, upto, .. } = self.range;
        [after, upto, &self.keys, aggregate_types, bounded_contexts, &self.limit, &self.bytes, &self.event_bytes]
    }
}

/// Which events to read: those of these keys, above one position and at or below another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) keys: KeySet,
    pub(crate) after: i64,
    pub(crate) upto: i64,
}

impl Range {
    /// How many positions, and so events at the most, are in it.
    fn positions(&self) -> u64 {
        self.upto.abs_diff(self.after)
    }

    /// What is left of it after its first batch, if anything is.
    pub(crate) fn following(&self, batch: &Batch) -> Option<Self> {
        (batch.end < self.upto).then(|| Self { after: batch.end, ..self.clone() })
    }
}

/// How much to read at once, at the most; but one event is always read, unless it is too large by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
    pub(crate) event_bytes: usize,
}

/// Why events could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The connection, or the server.
    Database(postgres::Error),
    /// The first event of the range cannot be read by anyone. Those before it can.
    Event(UnreadableEvent),
}

/// An event that cannot be read.
#[derive(Debug)]
pub(crate) struct UnreadableEvent {
    pub(crate) position: i64,
    pub(crate) problem: String,
}

impl From<postgres::Error> for ReadError {
    fn from(error: postgres::Error) -> Self {
        Self::Database(error)
    }
}

impl ReadError {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Database(source) => Error::Database { doing: "reading events", source },
            Self::Event(UnreadableEvent { position, problem }) => Error::UnreadableEvent { position, problem },
        }
    }
}

/// Events in the order of their positions, and how far they reach.
#[derive(Debug, Clone, Default)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    /// The key of each, if the reader gives keys.
    pub(crate) keys: Vec<i32>,
    /// Every matching event above the range's start and at or below this position is in the batch.
    pub(crate) end: i64,
}

/// Reads events of a scope within bounds, on the connection it was prepared on.
///
/// To add the weights up on the server, row by row, costs as much as all the rest. So events are
/// first read without: each is sent whole if it is *light*, within some equal shares of the bytes,
/// and as a stub if not. The batch ends before the first stub, or where the bytes are used up; what
/// is still sent is not kept. Only where events are heavy are they read with their weights added
/// up. One that is too large by itself is not sent at all.
#[derive(Debug)]
pub(crate) struct EventReader {
    light: Statement,
    weighed: Statement,
    scope: Scope,
    bounds: Bounds,
    gives_keys: bool,
    /// Where the rows of the last batch ended.
    end: End,
    /// How much the last batch took.
    room: Room,
}

impl EventReader {
    /// Computing the keys costs the server a tenth of the time: only for those who ask for them.
    pub(crate) fn prepare(
        client: &mut Client,
        names: &Names,
        scope: Scope,
        bounds: Bounds,
        gives_keys: bool,
    ) -> Result<Self, postgres::Error> {
        let matching = matching(names);
        let key = if gives_keys { KEY } else { "NULL::int4" };
        // A subquery with a limit is not merged with what is around it, so the weight is computed once.
        let matching = format!("SELECT *, {} AS weight {matching}", weight_sql());
        let light = format!(
            "SELECT {}, {key} FROM ({matching}) AS matching ORDER BY global_position",
            columns("weight", Some("weight <= $7"))
        );
        let weighed = format!(
            "SELECT {}, {key}, is_last FROM (
                 SELECT *, sum(weight) OVER (ORDER BY global_position ROWS UNBOUNDED PRECEDING) AS total,
                        lag(global_position) OVER (ORDER BY global_position) IS NULL AS is_first,
                        lead(global_position) OVER (ORDER BY global_position) IS NULL AS is_last
                 FROM ({matching}) AS matching) AS weighed
             WHERE total <= $7 OR is_first ORDER BY global_position",
            columns("weight", Some("weight <= $8"))
        );
        Ok(Self {
            light: client.prepare_typed(&light, &PARAMETER_TYPES)?,
            weighed: client.prepare_typed(&weighed, &PARAMETER_TYPES)?,
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

    /// Reads up to the first event that is heavy.
    fn read_light(&mut self, client: &mut Client, range: &Range) -> Result<Batch, ReadError> {
        let mut rows = self.query(client, &self.light, range, self.light_bytes())?;
        self.take_light(&mut rows, range)
    }

    /// How heavy a light event may be.
    fn light_bytes(&self) -> usize {
        (self.bounds.bytes / self.bounds.events).saturating_mul(LIGHT_SHARES).min(self.bounds.event_bytes)
    }

    /// Takes in the rows of a batch, up to the first that is heavy. Of a range, these are the first.
    fn take_light(&mut self, rows: &mut RowIter<'_>, range: &Range) -> Result<Batch, ReadError> {
        let (heavy, light) = (self.bounds.bytes, self.light_bytes());
        let mut found = self.nothing_found();
        let mut end = End::Reached;
        let mut total = 0;
        while end == End::Reached
            && found.events.len() < self.bounds.events
            && let Some(row) = rows.next()?
        {
            let weight = weight(&row)?;
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
        let mut rows = self.query(client, &self.weighed, range, self.bounds.bytes)?;
        while end == End::Reached
            && let Some(row) = rows.next()?
        {
            let weight = weight(&row)?;
            end = self.take(&mut found, &row, weight)?;
            nothing_followed = row.try_get(IS_LAST)?;
        }
        drop(rows);
        // The server leaves out what exceeds the bytes.
        self.end = if nothing_followed { end } else { End::Heavy };
        Ok(self.batch(found, range, self.end == End::Reached))
    }

    /// Takes a row in, or says that the batch ends before it. The first row has to be readable.
    fn take(&self, found: &mut Found, row: &Row, weight: usize) -> Result<End, ReadError> {
        let problem = if weight > self.bounds.event_bytes {
            Some(format!("it has {weight} bytes, and max_event_bytes is {}", self.bounds.event_bytes))
        } else {
            push(&mut found.events, row).err().map(|error| describe(&error))
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

    /// The rows as they come in: none is kept beside what is made of it.
    fn query<'c>(
        &self,
        client: &'c mut Client,
        statement: &Statement,
        range: &Range,
        bytes: usize,
    ) -> Result<RowIter<'c>, postgres::Error> {
        client.query_raw(statement, self.parameters(range, self.bounds.events, bytes).all())
    }

    fn parameters<'a>(&'a self, range: &'a Range, limit: usize, bytes: usize) -> Parameters<'a> {
        Parameters {
            range,
            // Whoever wants all keys need not have them computed.
            keys: Some(&range.keys).filter(|keys| **keys != KeySet::all()),
            scope: &self.scope,
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
            event_bytes: i64::try_from(self.bounds.event_bytes).unwrap_or(i64::MAX),
        }
    }

    /// With room for as much as was found the last time.
    fn nothing_found(&self) -> Found {
        Found { events: EventBuffer::with_room(self.room), keys: Vec::new() }
    }

    /// `is_all` says that nothing was left out for its weight.
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

/// What has been read of a batch.
struct Found {
    events: EventBuffer,
    keys: Vec<i32>,
}

/// Where the rows of a batch end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Where there are no more of them, or as many as are wanted.
    Reached,
    /// Before an event that is heavy.
    Heavy,
    /// Before an event that cannot be read.
    Unreadable,
}

fn weight(row: &Row) -> Result<usize, postgres::Error> {
    Ok(usize::try_from(row.try_get::<_, i64>(WEIGHT)?).unwrap_or(usize::MAX))
}

fn push(buffer: &mut EventBuffer, row: &Row) -> Result<(), postgres::Error> {
    buffer.push(&EventColumns {
        global_position: row.try_get(POSITION)?,
        aggregate_version: row.try_get(2)?,
        event_id: row.try_get(3)?,
        event_version: row.try_get(4)?,
        created_at: row.try_get(5)?,
        bounded_context: row.try_get(6)?,
        aggregate_type: row.try_get(7)?,
        aggregate_id: row.try_get(8)?,
        event_type: row.try_get(9)?,
        payload: row.try_get(10)?,
        trace_id: row.try_get(11)?,
        correlation_id: row.try_get(12)?,
        causation_id: row.try_get(13)?,
        metadata: row.try_get::<_, Option<JsonText<'_>>>(14)?.map(|json| json.0),
    });
    Ok(())
}

/// JSON as the server sends it, which has seen to it that it is valid.
struct JsonText<'a>(&'a str);

impl<'a> FromSql<'a> for JsonText<'a> {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        // A jsonb begins with the version of its form.
        let text = if *ty == Type::JSONB { raw.strip_prefix(&[1]).ok_or("jsonb of an unknown version")? } else { raw };
        Ok(Self(std::str::from_utf8(text)?))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::JSON | Type::JSONB)
    }
}

/// Reads the events of one aggregate, ascending by version, both bounds included.
pub(crate) fn read_stream(
    client: &mut impl GenericClient,
    names: &Names,
    (bounded_context, aggregate_type, aggregate_id): (&str, &str, &str),
    from_version: i64,
    to_version: i64,
) -> Result<Vec<Event>, postgres::Error> {
    // The client is the application's, and so is its search path: see `fence`.
    let sql = format!(
        "SELECT {} FROM {} WHERE bounded_context OPERATOR(pg_catalog.=) $1 AND aggregate_type OPERATOR(pg_catalog.=) $2
         AND aggregate_id OPERATOR(pg_catalog.=) $3 AND aggregate_version OPERATOR(pg_catalog.>=) $4
         AND aggregate_version OPERATOR(pg_catalog.<=) $5 ORDER BY aggregate_version",
        columns("0", None),
        names.events()
    );
    let rows = client.query_typed(
        &sql,
        &[
            (&bounded_context, Type::TEXT),
            (&aggregate_type, Type::TEXT),
            (&aggregate_id, Type::TEXT),
            (&from_version, Type::INT8),
            (&to_version, Type::INT8),
        ],
    )?;
    let mut buffer = EventBuffer::default();
    rows.iter().try_for_each(|row| push(&mut buffer, row))?;
    Ok(Event::all(buffer))
}
