//! The contenders that read the events in a database: a worker of the library, and bare clients.
//!
//! - A *worker* is a new replica set of one worker, with a new projection and the default options.
//!   It holds its partition and has read its first batch before it may handle an event. Its time
//!   counts from then until its status shows the last event's position, which is after the commit
//!   of that checkpoint. It does not include the start (see `start`) and the leave.
//! - A *bare select* is a client that selects the next events above a position, up to a limit, and
//!   builds owned structs from the rows. Its connection and prepared statement exist before.
//! - A *bare copy* is `COPY … TO STDOUT (FORMAT binary)` of the same columns, into memory that is
//!   allocated before.

use std::io::Read as _;
use std::time::{Duration, Instant};

use postgres::types::Json;
use postgres::{Client, GenericClient, Row};
use pupsourcing_orchestrator::{EventParts, ProjectionState};
use serde_json::value::RawValue;

use crate::gate::Gate;
use crate::lab::{BATCH, Filling, Lab, builder};
use crate::projections::{Handler, Measured};
use crate::support::server::connect;

/// A worker's run through events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) filling: Filling,
    /// How many events are handled: the last ones.
    pub(crate) last: i64,
    pub(crate) handler: Handler,
    pub(crate) batch_size: i64,
    pub(crate) lanes: usize,
    /// How many aggregates are parked before it begins. None of them has an event.
    pub(crate) parked: i64,
}

impl Run {
    /// Creates a run through all events.
    pub(crate) fn new(filling: Filling, handler: Handler) -> Self {
        Self { filling, last: filling.events, handler, batch_size: BATCH, lanes: 1, parked: 0 }
    }

    /// Returns the events per second of a worker in this process.
    pub(crate) fn worker(self, lab: &mut Lab) -> f64 {
        let url = lab.filled(self.filling);
        self.worker_in(&url, lab.name())
    }

    /// Returns the same in a database with these events, for a replica set of a new name.
    pub(crate) fn worker_in(self, url: &str, name: String) -> f64 {
        empty_counts(url);
        let head = self.filling.head();
        // There may be holes only if all events are handled.
        let start_at = if self.last == self.filling.events { 0 } else { head - self.last };
        if self.parked > 0 {
            park(url, &name, start_at, self.parked);
        }
        let gate = Gate::shut(url);
        let handle = builder(url, &name)
            .batch_projection(Measured::new(name, start_at, self.handler))
            .batch_size(self.batch_size as usize)
            .lanes(self.lanes)
            .build()
            .unwrap()
            .start()
            .unwrap();
        let tick = crossbeam_channel::tick(Duration::from_millis(5));
        while handle.status().projections.values().all(|projection| projection.state != ProjectionState::Retrying) {
            tick.recv().unwrap();
        }
        let begun = gate.open();
        loop {
            let status = handle.status();
            let projection = status.projections.values().next().unwrap();
            if projection.position == Some(head) {
                assert_eq!(projection.events as i64, self.last, "every event is handled, once");
                break;
            }
            assert!(projection.state != ProjectionState::Halted, "halted: {:?}", projection.error);
            tick.recv().unwrap();
        }
        let took = begun.elapsed();
        handle.shutdown(Duration::from_secs(10)).unwrap();
        self.last as f64 / took.as_secs_f64()
    }
}

/// Creates a projection at a position, in a new replica set of the same name.
pub(crate) fn place(client: &mut impl GenericClient, name: &str, position: i64) {
    client.execute("INSERT INTO orchestrator_replica_sets (name) VALUES ($1)", &[&name]).unwrap();
    client.execute("INSERT INTO orchestrator_projections (name, replica_set) VALUES ($1, $1)", &[&name]).unwrap();
    let checkpoint = "INSERT INTO orchestrator_checkpoints (projection, keys, position) VALUES ($1, '{[0,65536)}', $2)";
    client.execute(checkpoint, &[&name, &position]).unwrap();
}

/// Creates a projection at a position, with this many parked aggregates.
fn park(url: &str, name: &str, position: i64, count: i64) {
    let mut tx = connect(url);
    let mut tx = tx.transaction().unwrap();
    place(&mut tx, name, position);
    tx.execute(
        "INSERT INTO orchestrator_parked (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id,
                                          event_type, attempts, error)
         SELECT $1, 'shop', 'Order', 'parked-' || i, i % 65536, 0, gen_random_uuid(), 'OrderPlaced', 8, 'no such customer'
         FROM generate_series(1, $2::bigint) AS i",
        &[&name, &count],
    )
    .unwrap();
    tx.commit().unwrap();
}

pub(crate) fn empty_counts(url: &str) {
    connect(url).batch_execute("TRUNCATE counts").unwrap();
}

/// Reads events, `limit` at a time, and passes them to `handle`. Returns the events per second.
pub(crate) fn bare_select(
    lab: &mut Lab,
    filling: Filling,
    last: i64,
    limit: i64,
    mut handle: impl FnMut(&mut Client, &[EventParts]),
) -> f64 {
    let mut client = connect(&lab.filled(filling));
    let read = client
        .prepare(&format!("SELECT {COLUMNS} FROM events WHERE global_position > $1 ORDER BY global_position LIMIT $2"))
        .unwrap();
    let mut position = filling.head() - last;
    let mut count = 0;
    let begun = Instant::now();
    loop {
        let rows = client.query(&read, &[&position, &limit]).unwrap();
        let events: Vec<EventParts> = rows.iter().map(event_of).collect();
        let Some(newest) = events.last() else { break };
        position = newest.global_position;
        count += events.len() as i64;
        handle(&mut client, &events);
    }
    let took = begun.elapsed();
    assert_eq!(count, last, "every event is read, once");
    count as f64 / took.as_secs_f64()
}

/// A bare copy, and the memory that it fills.
pub(crate) struct BareCopy {
    filling: Filling,
    memory: std::cell::RefCell<Vec<u8>>,
}

impl BareCopy {
    pub(crate) fn of(filling: Filling) -> Self {
        Self { filling, memory: std::cell::RefCell::default() }
    }

    /// Returns the events per second.
    pub(crate) fn run(&self, lab: &mut Lab) -> f64 {
        let mut client = connect(&lab.filled(self.filling));
        let copy = format!("COPY (SELECT {COLUMNS} FROM events ORDER BY global_position) TO STDOUT (FORMAT binary)");
        let mut memory = self.memory.borrow_mut();
        memory.clear();
        let begun = Instant::now();
        client.copy_out(&copy).unwrap().read_to_end(&mut memory).unwrap();
        let took = begun.elapsed();
        let least = self.filling.events * i64::from(self.filling.payload);
        assert!(memory.len() as i64 > least, "every payload is there");
        self.filling.events as f64 / took.as_secs_f64()
    }
}

/// The columns that the library reads.
const COLUMNS: &str = "global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, \
     event_version, payload, trace_id, correlation_id, causation_id, metadata, created_at";

fn event_of(row: &Row) -> EventParts {
    EventParts {
        global_position: row.get(0),
        bounded_context: row.get(1),
        aggregate_type: row.get(2),
        aggregate_id: row.get(3),
        aggregate_version: row.get(4),
        event_id: row.get(5),
        event_type: row.get(6),
        event_version: row.get(7),
        payload: row.get(8),
        trace_id: row.get(9),
        correlation_id: row.get(10),
        causation_id: row.get(11),
        metadata: row.get::<_, Option<Json<Box<RawValue>>>>(12).map(|json| json.0),
        created_at: row.get(13),
    }
}
