//! Writers that append events in every possible way, even if the server is away at times.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use postgres::error::SqlState;
use postgres::{Client, NoTls, Transaction};
use pupsourcing_orchestrator::{AppendError, EventStore, ExpectedVersion, NewEvent, StreamId};
use uuid::Uuid;

use crate::support::insert::insert;

const WRITERS: u64 = 8;
/// The number of aggregates to which all writers append.
const SHARED_AGGREGATES: u16 = 60;
/// The rows of events that are inserted with plain SQL: their ids are the second argument.
const IDS: &str = "unnest($2::uuid[]) WITH ORDINALITY AS e (id, n)";
const TYPES: [&str; 6] = ["Opened", "Changed", "Moved", "Renamed", "Noted", "Closed"];

/// The outcomes of the appends.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The ids of events whose commit was acknowledged.
    pub(crate) acknowledged: Vec<Uuid>,
    pub(crate) rolled_back: u64,
    pub(crate) conflicts: u64,
    /// Transactions that failed, some of them with an unknown outcome.
    pub(crate) failed: u64,
}

pub(crate) struct Writers {
    stop: Sender<()>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Writers {
    pub(crate) fn start(url: &str, seed: u64) -> Self {
        let (stop, stopped) = bounded(0);
        let threads = (0..WRITERS)
            .map(|number| {
                let writer = Writer {
                    url: url.to_owned(),
                    rng: fastrand::Rng::with_seed(seed ^ (number + 1)),
                    stop: stopped.clone(),
                    store: EventStore::default(),
                    tally: Tally::default(),
                };
                thread::Builder::new().name(format!("writer-{number}")).spawn(move || writer.run()).unwrap()
            })
            .collect();
        Self { stop, threads }
    }

    /// Stops the writers after their current append.
    pub(crate) fn finish(self) -> Tally {
        drop(self.stop);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).fold(Tally::default(), |mut all, one| {
            all.acknowledged.extend(one.acknowledged);
            all.rolled_back += one.rolled_back;
            all.conflicts += one.conflicts;
            all.failed += one.failed;
            all
        })
    }
}

struct Writer {
    url: String,
    rng: fastrand::Rng,
    stop: Receiver<()>,
    store: EventStore,
    tally: Tally,
}

/// How to put events of one aggregate into the store.
#[derive(Clone, Copy)]
enum Way {
    Any,
    Exact,
    /// With plain SQL, like a writer that does not know the aggregate heads.
    Plain,
}

impl Writer {
    fn run(mut self) -> Tally {
        let mut client = None;
        loop {
            let pause = Duration::from_millis(self.rng.u64(0..80));
            if self.stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return self.tally;
            }
            client =
                client.filter(|client: &Client| !client.is_closed()).or_else(|| Client::connect(&self.url, NoTls).ok());
            let Some(client) = &mut client else { continue };
            match self.rng.u8(..100) {
                0 => self.burst(client),
                1 => (0..20).for_each(|_| self.append(client, Duration::ZERO)),
                _ => {
                    let hold = match self.rng.u8(..80) {
                        0 => 200..1_200,
                        1..20 => 0..50,
                        _ => 0..3,
                    };
                    let hold = Duration::from_millis(self.rng.u64(hold));
                    self.append(client, hold);
                }
            }
            if self.rng.bool() {
                self.store.hint(client);
            }
        }
    }

    /// Appends a few events of one aggregate, and retries when another writer was quicker.
    fn append(&mut self, client: &mut Client, hold: Duration) {
        let id = if self.rng.u8(..4) == 0 {
            format!("new-{:016x}", self.rng.u64(..))
        } else {
            format!("thing-{}", self.rng.u16(..SHARED_AGGREGATES))
        };
        let way = [Way::Any, Way::Exact, Way::Plain][self.rng.usize(..3)];
        let ids: Vec<Uuid> = (0..self.rng.usize(1..=4)).map(|_| self.new_id()).collect();
        let events: Vec<NewEvent> = ids
            .iter()
            .map(|event| {
                let event_type = TYPES[self.rng.usize(..TYPES.len())];
                NewEvent::new(event_type, b"x".as_slice()).event_id(*event)
            })
            .collect();
        for _ in 0..5 {
            match self.attempt(client, way, (&id, &ids, &events), hold) {
                Ok(true) => {
                    self.tally.acknowledged.extend(ids);
                    return;
                }
                Ok(false) => {
                    self.tally.rolled_back += 1;
                    return;
                }
                Err(error) if error.is_conflict() || (matches!(way, Way::Plain) && is_version_taken(&error)) => {
                    self.tally.conflicts += 1;
                }
                Err(AppendError::Database { .. }) => {
                    self.tally.failed += 1;
                    return;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// Returns true if the events were committed, and false if they were rolled back instead.
    fn attempt(
        &mut self,
        client: &mut Client,
        way: Way,
        (aggregate, ids, events): (&str, &[Uuid], &[NewEvent]),
        hold: Duration,
    ) -> Result<bool, AppendError> {
        let mut tx = client.transaction()?;
        match way {
            Way::Any => _ = self.store.append(&mut tx, &thing(aggregate), ExpectedVersion::Any, events)?,
            Way::Exact => {
                let version = version(&mut tx, aggregate)?;
                self.store.append(&mut tx, &thing(aggregate), ExpectedVersion::Exact(version), events)?;
            }
            Way::Plain => insert_next(&mut tx, aggregate, ids)?,
        }
        if !hold.is_zero() {
            // The wait ends early when the writers are stopped, but the transaction still ends as
            // usual.
            _ = self.stop.recv_timeout(hold);
        }
        let commits = self.rng.u8(..20) > 0;
        if commits { tx.commit() } else { tx.rollback() }?;
        Ok(commits)
    }

    /// Inserts many events of new aggregates in one statement.
    fn burst(&mut self, client: &mut Client) {
        let count = self.rng.usize(50..400);
        let ids: Vec<Uuid> = std::iter::repeat_with(|| self.new_id()).take(count).collect();
        let columns = [
            ("bounded_context", "'chaos'"),
            ("aggregate_type", "'Burst'"),
            ("aggregate_id", "$1 || '-' || n % 20"),
            ("aggregate_version", "1 + (n - 1) / 20"),
            ("event_id", "id"),
            ("event_type", "'Burst'"),
        ];
        let sql = format!("{} ORDER BY n", insert(IDS, &columns));
        let aggregate = format!("burst-{:016x}", self.rng.u64(..));
        match client.execute(&sql, &[&aggregate, &ids]) {
            Ok(_) => self.tally.acknowledged.extend(ids),
            Err(_) => self.tally.failed += 1,
        }
    }

    fn new_id(&mut self) -> Uuid {
        Uuid::from_u128(self.rng.u128(..))
    }
}

/// Inserts events with plain SQL. Another writer that inserts the same versions at the same time
/// waits, and fails if this one commits.
fn insert_next(tx: &mut Transaction<'_>, aggregate: &str, ids: &[Uuid]) -> Result<(), AppendError> {
    let version = "coalesce((SELECT max(aggregate_version) FROM events
                   WHERE bounded_context = 'chaos' AND aggregate_type = 'Thing' AND aggregate_id = $1), 0) + n";
    let columns = [
        ("bounded_context", "'chaos'"),
        ("aggregate_id", "$1"),
        ("aggregate_version", version),
        ("event_id", "id"),
        ("event_type", "'Inserted'"),
    ];
    tx.execute(&format!("{} ORDER BY n", insert(IDS, &columns)), &[&aggregate, &ids])?;
    Ok(())
}

fn version(tx: &mut Transaction<'_>, id: &str) -> Result<i64, AppendError> {
    let sql = "SELECT coalesce(max(aggregate_version), 0) FROM events
               WHERE bounded_context = 'chaos' AND aggregate_type = 'Thing' AND aggregate_id = $1";
    Ok(tx.query_one(sql, &[&id])?.get(0))
}

/// Whether a plain insert failed because another writer has inserted the same version.
fn is_version_taken(error: &AppendError) -> bool {
    matches!(error, AppendError::Database { source, .. } if source.code() == Some(&SqlState::UNIQUE_VIOLATION))
}

fn thing(id: &str) -> StreamId {
    StreamId::new("chaos", "Thing", id)
}
