//! The handlers of the benches.

use std::str::FromStr;
use std::time::Duration;

use pupsourcing_orchestrator::{BatchProjection, BoxError, Event, StartAt, Tx};

use crate::gate::Passage;
use crate::support::pause;

/// One upsert for one event, given as text, as an application writes it.
pub(crate) const COUNT: &str = "
    INSERT INTO counts AS c (aggregate_id, events) VALUES ($1, 1)
    ON CONFLICT (aggregate_id) DO UPDATE SET events = c.events + 1";

/// One upsert for a batch.
pub(crate) const COUNT_BATCH: &str = "
    INSERT INTO counts AS c (aggregate_id, events)
    SELECT id, count(*) FROM unnest($1::text[]) AS id GROUP BY id ORDER BY id
    ON CONFLICT (aggregate_id) DO UPDATE SET events = c.events + excluded.events";

/// The rows that [`Handler::Fill`] inserts for each event.
pub(crate) const ROWS_PER_EVENT: i64 = 100;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Handler {
    /// Does nothing, event by event.
    NoOp,
    /// Does nothing, batch by batch.
    NoOpBatches,
    Count,
    CountBatches,
    /// Waits for a millisecond per event, as if for the answer of another service.
    Wait,
    /// Inserts a row for each event, which shows when the event was handled.
    Arrive,
    /// Inserts many rows for each event, batch by batch.
    Fill,
}

impl Handler {
    pub(crate) const TABLES: &str = "
        CREATE TABLE counts (aggregate_id text PRIMARY KEY, events bigint NOT NULL);
        CREATE TABLE arrived (global_position bigint NOT NULL);
        CREATE TABLE filled (global_position bigint, number bigint, note text NOT NULL, PRIMARY KEY (global_position, number));
        CREATE TABLE nothing (id bigint)";

    const NAMES: [(&str, Self); 7] = [
        ("no-op", Self::NoOp),
        ("no-op-batches", Self::NoOpBatches),
        ("count", Self::Count),
        ("count-batches", Self::CountBatches),
        ("wait", Self::Wait),
        ("arrive", Self::Arrive),
        ("fill", Self::Fill),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, handler)| *handler == self).map_or("", |(name, _)| name)
    }

    /// The table that the handler writes. One that writes nothing has an empty table, because only
    /// a projection with tables can be rebuilt.
    fn tables(self) -> &'static [&'static str] {
        match self {
            Self::NoOp | Self::NoOpBatches | Self::Wait => &["nothing"],
            Self::Count | Self::CountBatches => &["counts"],
            Self::Arrive => &["arrived"],
            Self::Fill => &["filled"],
        }
    }

    fn handle(self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        match self {
            Self::NoOp => Ok(1),
            Self::NoOpBatches => Ok(events.len()),
            Self::Count => {
                tx.execute(COUNT, &[&events[0].aggregate_id()])?;
                Ok(1)
            }
            Self::CountBatches => {
                let ids: Vec<&str> = events.iter().map(Event::aggregate_id).collect();
                tx.execute(COUNT_BATCH, &[&ids])?;
                Ok(events.len())
            }
            Self::Wait => {
                pause(Duration::from_millis(1));
                Ok(1)
            }
            Self::Arrive => {
                tx.execute("INSERT INTO arrived VALUES ($1)", &[&events[0].global_position()])?;
                Ok(1)
            }
            Self::Fill => {
                let positions: Vec<i64> = events.iter().map(Event::global_position).collect();
                tx.execute(
                    "INSERT INTO filled SELECT position, number, md5(number::text)
                     FROM unnest($1::bigint[]) AS position, generate_series(1, $2::bigint) AS number",
                    &[&positions, &ROWS_PER_EVENT],
                )?;
                Ok(events.len())
            }
        }
    }
}

impl FromStr for Handler {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, handler)| *handler).ok_or_else(|| format!("there is no handler {name:?}"))
    }
}

/// A handler as a projection.
#[derive(Debug)]
pub(crate) struct Measured {
    name: String,
    start_at: i64,
    handler: Handler,
    owns_tables: bool,
    gate: Passage,
}

impl Measured {
    pub(crate) fn new(name: impl Into<String>, start_at: i64, handler: Handler) -> Self {
        Self { name: name.into(), start_at, handler, owns_tables: false, gate: Passage::default() }
    }

    /// Names the tables that the handler writes, so that they can be rebuilt. Only one projection
    /// of a database may name them.
    pub(crate) fn owning_tables(self) -> Self {
        Self { owns_tables: true, ..self }
    }
}

impl BatchProjection for Measured {
    fn name(&self) -> &str {
        &self.name
    }

    fn start_at(&self) -> StartAt {
        StartAt::Position(self.start_at)
    }

    fn tables(&self) -> &[&str] {
        if self.owns_tables { self.handler.tables() } else { &[] }
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        self.gate.pass(tx)?;
        self.handler.handle(tx, events)
    }
}
