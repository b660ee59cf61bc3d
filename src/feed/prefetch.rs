//! Prefetching: while a runner's handler works on one batch, a thread of its own, the *reader*,
//! reads the next batch on another connection.
//!
//! When it is asked for a range, the reader reads it batch by batch, until the range is exhausted
//! or the runner drops its request. It hands over a batch when the runner takes it, so it is never
//! more than one batch ahead.
//!
//! *Invariant:* each request has a channel of its own for its answers. So events that were read for
//! a dropped request are never taken for the answer to a later one. After a failover they may be
//! from a server that no longer exists.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, never, select};

use crate::database::Pool;
use crate::error::Error;
use crate::scope::Scope;
use crate::shortage::Shortage;
use crate::store::Names;
use crate::store::events::{Batch, Bounds, EventReader, Range, ReadError};
use crate::store::session::{Session, Sessions};
use crate::threads::Crew;

/// How long an idle reader keeps its connection.
const KEEP_CONNECTION: Duration = Duration::from_secs(5);
/// How long a reader waits for a connection before it reports that there is none.
const POOL_PATIENCE: Duration = Duration::from_secs(5);
/// A runner that takes a batch within this time was waiting for the reader; otherwise the reader
/// was waiting for the runner.
const AT_ONCE: Duration = Duration::from_millis(3);
/// How many batches in a row have to be taken at once before a scan is begun. What a scan sends to
/// a runner that does not wait for it is wasted, so one taken at once by chance is not enough.
const IN_A_ROW: usize = 4;
/// How long a scan waits for the runner to take a batch. It is longer than [`AT_ONCE`], because a
/// scan reads more quickly.
const SCAN_PATIENCE: Duration = Duration::from_millis(6);

/// A batch, or why there is none.
pub(crate) type Answer = Result<Batch, Error>;

/// A request to a reader.
#[derive(Debug)]
pub(crate) struct Request {
    /// The range that is left to be read.
    range: Range,
    answers: Sender<Answer>,
}

/// The runner's end of a request. The runner drops it to cancel the request.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) answers: Receiver<Answer>,
    /// The range of the next answer, if there is one.
    next: Option<Range>,
}

/// Creates a request for a reader, and the runner's end of it.
pub(crate) fn ask(range: Range) -> (Request, Reading) {
    let (sender, answers) = bounded(0);
    (Request { range: range.clone(), answers: sender }, Reading { answers, next: Some(range) })
}

impl Reading {
    /// Whether the next answer begins with the first events of this range. The end of the range
    /// does not matter: the head only moves forward, so they are the same events.
    pub(crate) fn goes_on_with(&self, range: &Range) -> bool {
        self.next.as_ref().is_some_and(|next| next.after == range.after && next.keys == range.keys)
    }

    /// Takes note of an answer that was received.
    pub(crate) fn take_note(&mut self, answer: &Answer) {
        self.next = self.next.take().and_then(|range| range.following(answer.as_ref().ok()?));
    }
}

/// Everything a reader works with.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) pool: Pool,
    pub(crate) sessions: Sessions,
    pub(crate) names: Names,
    pub(crate) scope: Scope,
    pub(crate) bounds: Bounds,
    pub(crate) shortage: Shortage,
}

impl Reader {
    /// Starts a reader. It ends when the runner drops the returned sender.
    pub(crate) fn spawn(self, crew: &Crew, thread: String) -> Result<Sender<Request>, Error> {
        // A request is handed over only when the reader is ready to take it, so a request that the
        // runner has dropped is never queued.
        let (requests, inbox) = bounded(0);
        crew.spawn(thread, move |_| {
            self.run(&inbox);
            Ok(())
        })?;
        Ok(requests)
    }

    fn run(self, inbox: &Receiver<Request>) {
        let mut handover = Handover { inbox, wanted: None, taken_at_once: 0, is_open: true };
        let mut connection = None;
        while handover.is_open {
            let Some(range) = handover.wanted.as_ref().map(|request| request.range.clone()) else {
                if !handover.wait() {
                    connection = None;
                }
                continue;
            };
            if let Err(error) = self.read_on(&mut connection, range, &mut handover) {
                // The connection may be unusable, and failures are rare, so it is always closed.
                if let Some((session, _)) = &mut connection {
                    session.condemn();
                }
                connection = None;
                handover.give(Err(error), None);
            }
        }
    }

    /// Reads the first batch of a range, or as much of the range as one scan yields, and hands it
    /// over.
    fn read_on(
        &self,
        connection: &mut Option<(Session, EventReader)>,
        range: Range,
        handover: &mut Handover<'_>,
    ) -> Result<(), Error> {
        let (session, events) = match connection {
            Some(sound) => sound,
            None => connection.insert(self.connect()?),
        };
        if handover.taken_at_once < IN_A_ROW || !events.is_worth_a_scan(&range) {
            let batch = session.run(|client| events.read(client, &range)).map_err(ReadError::into_error)?;
            handover.give(Ok(batch), None);
            return Ok(());
        }
        let mut late = None;
        let scanned = events.scan(session, range, |batch| match handover.give(Ok(batch), Some(SCAN_PATIENCE)) {
            Given::Taken => true,
            Given::Unwanted => false,
            Given::Late(batch) => {
                late = Some(batch);
                false
            }
        });
        scanned.map_err(ReadError::into_error)?;
        if let Some(batch) = late {
            handover.give(batch, None);
            // By now the runner may already be waiting, so taking this batch at once does not
            // count.
            handover.taken_at_once = 0;
        }
        Ok(())
    }

    fn connect(&self) -> Result<(Session, EventReader), Error> {
        let preparing = || Error::database("preparing to read events");
        let mut session =
            Session::new(self.shortage.note(|| self.pool.get(POOL_PATIENCE))?, self.sessions).map_err(preparing())?;
        let events = session
            .run(|client| EventReader::prepare(client, &self.names, self.scope.clone(), self.bounds, false))
            .map_err(preparing())?;
        Ok((session, events))
    }
}

/// Takes requests, and hands over the answers.
struct Handover<'a> {
    inbox: &'a Receiver<Request>,
    /// The rest of the last request, unless the runner has dropped it.
    wanted: Option<Request>,
    /// How many batches in a row were taken at once.
    taken_at_once: usize,
    /// Whether the runner still exists.
    is_open: bool,
}

/// What happened to an answer.
enum Given {
    /// The runner has taken it.
    Taken,
    /// The runner has dropped the request, or sent another one.
    Unwanted,
    /// The runner has not taken it within the patience.
    Late(Answer),
}

impl Handover<'_> {
    /// Waits for a request. Returns false if none came for a while.
    fn wait(&mut self) -> bool {
        match self.inbox.recv_timeout(KEEP_CONNECTION) {
            Err(RecvTimeoutError::Timeout) => return false,
            request => self.asked(request.ok()),
        }
        true
    }

    /// Hands an answer to the runner as soon as the runner takes it. Stops waiting when the runner
    /// drops its request, or when the patience, if there is one, runs out.
    fn give(&mut self, read: Answer, patience: Option<Duration>) -> Given {
        let Some(request) = self.wanted.take() else { return Given::Unwanted };
        let following = read.as_ref().ok().and_then(|batch| request.range.following(batch));
        let enough = patience.map_or_else(never, after);
        let offered = Instant::now();
        select! {
            send(request.answers, read) -> sent => if sent.is_ok() {
                self.taken_at_once = if offered.elapsed() < AT_ONCE { self.taken_at_once + 1 } else { 0 };
                self.wanted = following.map(|range| Request { range, ..request });
                Given::Taken
            } else {
                Given::Unwanted
            },
            recv(self.inbox) -> another => {
                self.asked(another.ok());
                Given::Unwanted
            },
            recv(enough) -> _ => {
                self.wanted = Some(request);
                Given::Late(read)
            }
        }
    }

    fn asked(&mut self, request: Option<Request>) {
        self.is_open = request.is_some();
        self.wanted = request;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Database, PoolOptions};
    use crate::event::Event;
    use crate::plan::KeySet;
    use crate::store::testing;
    use crate::threads::Pulse;

    fn range(after: i64) -> Range {
        Range { keys: KeySet::all(), after, upto: 30 }
    }

    fn batch(end: i64) -> Batch {
        Batch { end, ..Batch::default() }
    }

    /// Starts a reader in its own thread. It answers each request with one batch that ends at 10,
    /// once it is told that the batch is read.
    fn reader(crew: &Crew, read: Receiver<()>, given: Sender<bool>) -> Sender<Request> {
        let (requests, inbox) = bounded(0);
        let body = move |_: &Pulse| {
            let mut handover = Handover { inbox: &inbox, wanted: None, taken_at_once: 0, is_open: true };
            while handover.is_open {
                if handover.wanted.is_none() {
                    handover.wait();
                } else if read.recv().is_ok() {
                    given.send(matches!(handover.give(Ok(batch(10)), None), Given::Taken)).unwrap();
                }
            }
            Ok(())
        };
        crew.spawn("reader", body).unwrap();
        requests
    }

    #[test]
    fn answers_to_a_dropped_request_are_never_taken_later() {
        let crew = Crew::begun();
        let (finish_reading, read) = bounded(1);
        let (given, outcomes) = bounded(1);
        let requests = reader(&crew, read, given);
        let (request, before) = ask(range(0));
        requests.send(request).unwrap();
        drop(before);
        let (request, now) = ask(range(0));
        finish_reading.send(()).unwrap();
        let soon = Duration::from_secs(5);
        assert!(!outcomes.recv_timeout(soon).unwrap(), "it may be from a server that is no more");
        requests.send_timeout(request, soon).unwrap();
        finish_reading.send(()).unwrap();
        assert_eq!(now.answers.recv_timeout(soon).unwrap().unwrap().end, 10);
        assert!(outcomes.recv_timeout(soon).unwrap());
        // The reader continues to read, and is asked for another range before it has handed the
        // next batch over.
        finish_reading.send(()).unwrap();
        let (request, other) = ask(range(3));
        requests.send_timeout(request, soon).unwrap();
        assert!(!outcomes.recv_timeout(soon).unwrap(), "it gives nothing to a runner that has asked again");
        assert!(now.answers.try_recv().is_err());
        finish_reading.send(()).unwrap();
        assert!(other.answers.recv_timeout(soon).unwrap().is_ok());
        assert!(outcomes.recv_timeout(soon).unwrap());
        drop(requests);
        finish_reading.send(()).unwrap();
        assert!(!outcomes.recv_timeout(soon).unwrap());
        crew.join(Some(soon)).unwrap();
    }

    #[test]
    fn a_range_that_is_being_read_is_not_requested_again() {
        let (_request, mut reading) = ask(range(0));
        assert!(reading.goes_on_with(&range(0)));
        assert!(reading.goes_on_with(&Range { upto: 99, ..range(0) }), "the head moves on");
        assert!(!reading.goes_on_with(&Range { keys: KeySet::partition(0, 2), ..range(0) }));
        reading.take_note(&Ok(batch(10)));
        assert!(reading.goes_on_with(&range(10)), "the reader goes on by itself");
        assert!(!reading.goes_on_with(&range(5)), "elsewhere it does not");
        reading.take_note(&Ok(batch(30)));
        assert!(!reading.goes_on_with(&range(30)), "nor beyond the range's end");
        let (_request, mut reading) = ask(range(0));
        reading.take_note(&Err(Error::UnreadableEvent { position: 1, problem: "too large".into() }));
        assert!(!reading.goes_on_with(&range(0)), "nor after it has failed");
    }

    #[test]
    fn reader_asked_for_another_range_during_a_scan_gives_that_one() {
        let url = testing::database();
        let database = Database::from_url(&url).unwrap();
        let mut client = database.connect().unwrap();
        client.batch_execute(&Names::default().schema_sql()).unwrap();
        client
            .batch_execute(
                "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
                 SELECT 'test', 'Thing', 'a', i, gen_random_uuid(), 'Happened', '' FROM generate_series(1, 1000) AS i",
            )
            .unwrap();
        let pool = database.pool(PoolOptions { size: 1, reset: None }).unwrap();
        let bounds = Bounds { events: 10, bytes: 1_000_000, event_bytes: 1_000_000 };
        let sessions = Sessions::Shared;
        let reader = Reader {
            pool,
            sessions,
            names: Names::default(),
            scope: Scope::all(),
            bounds,
            shortage: Shortage::default(),
        };
        let requests = reader.spawn(&Crew::begun(), "reader".into()).unwrap();
        for after in [0, 500, 3, 777, 250, 16, 900] {
            let (request, reading) = ask(Range { keys: KeySet::all(), after, upto: 1_000 });
            requests.send_timeout(request, Duration::from_secs(10)).unwrap();
            // The batches are taken as soon as they come, so that most of them are from a scan.
            for batch in 0..4 {
                let found = reading.answers.recv_timeout(Duration::from_secs(10)).unwrap().unwrap().events;
                let positions: Vec<i64> = found.iter().map(Event::global_position).collect();
                let first = after + batch * 10 + 1;
                assert_eq!(positions, (first..first + 10).collect::<Vec<_>>());
            }
        }
    }
}
