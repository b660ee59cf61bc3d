//! Reading ahead: while a runner's handler works on one batch, a thread of its own reads the next on another connection.
//!
//! Asked for a range, the reader goes through it batch by batch, until the range is exhausted or it is asked for another. It gives a batch
//! when the runner takes it, so it is one batch ahead and no more.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, never, select};

use crate::database::Pool;
use crate::error::Error;
use crate::projection::Scope;
use crate::store::Names;
use crate::store::events::{Batch, Bounds, EventReader, Range, ReadError};
use crate::store::session::{Session, Sessions};
use crate::threads::{Crew, Pulse};

/// How long an idle reader keeps its connection.
const KEEP_CONNECTION: Duration = Duration::from_secs(5);
/// How long a reader waits for a connection before it reports that there is none.
const POOL_PATIENCE: Duration = Duration::from_secs(5);
/// Whoever takes what was read within this time is waiting for the reader, and not the reader for it.
const AT_ONCE: Duration = Duration::from_millis(3);
/// How many batches have to be taken at once, one after the other, until a scan is begun: what it sends in vain to a runner that does not
/// wait is lost time, so a chance is not enough.
const IN_A_ROW: usize = 4;
/// How long a scan waits for the runner to take a batch: longer than before it was begun, for it reads more quickly.
const SCAN_PATIENCE: Duration = Duration::from_millis(6);

/// What to read.
#[derive(Debug)]
struct Request {
    /// Told apart by it from what was asked for before.
    number: u64,
    /// Nothing any more, if none.
    range: Option<Range>,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Answer {
    request: u64,
    batch: Result<Batch, Error>,
}

/// A runner's handle to its reader. Dropping it ends the reader.
#[derive(Debug)]
pub(crate) struct Ahead {
    requests: Sender<Request>,
    /// The other end of `requests`, to take back what has not been begun.
    queued: Receiver<Request>,
    pub(crate) answers: Receiver<Answer>,
    /// The number of the last request.
    asked: u64,
    /// What comes next, if anything does.
    expected: Option<Range>,
}

/// What a reader needs.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) pool: Pool,
    pub(crate) sessions: Sessions,
    pub(crate) names: Names,
    pub(crate) scope: Scope,
    pub(crate) bounds: Bounds,
}

impl Ahead {
    pub(crate) fn spawn(crew: &Crew, thread: String, reader: Reader) -> Result<Self, Error> {
        let (requests, inbox) = bounded(1);
        let (outbox, answers) = bounded(0);
        let queued = inbox.clone();
        crew.spawn(thread, move |pulse| {
            reader.run(&inbox, &outbox, pulse);
            Ok(())
        })?;
        Ok(Self { requests, queued, answers, asked: 0, expected: None })
    }

    /// Asks for a range, unless its first events are on their way. Where it ends does not matter then: the head only moves on, and so they
    /// are the same events.
    pub(crate) fn ask(&mut self, range: &Range) {
        if self.expected.as_ref().is_some_and(|next| next.after == range.after && next.keys == range.keys) {
            return;
        }
        self.request(Some(range.clone()));
    }

    /// Takes an answer; `None` if it is not to what was asked for last.
    pub(crate) fn accept(&mut self, answer: Answer) -> Option<Result<Batch, Error>> {
        if answer.request != self.asked {
            return None;
        }
        self.expected = self.expected.take().and_then(|range| range.following(answer.batch.as_ref().ok()?));
        Some(answer.batch)
    }

    /// Forgets what was asked for: it is not wanted any more.
    pub(crate) fn forget(&mut self) {
        if self.expected.is_some() {
            self.request(None);
        }
    }

    fn request(&mut self, range: Option<Range>) {
        while self.queued.try_recv().is_ok() {}
        self.asked += 1;
        self.expected.clone_from(&range);
        // There is room: only this thread sends. If the reader has ended, the worker is stopping.
        _ = self.requests.try_send(Request { number: self.asked, range });
    }
}

impl Reader {
    fn run(self, inbox: &Receiver<Request>, outbox: &Sender<Answer>, pulse: &Pulse) {
        let mut handover = Handover { inbox, outbox, pulse, number: 0, range: None, taken_at_once: 0, is_open: true };
        let mut connection = None;
        while handover.is_open {
            pulse.beat();
            if handover.range.is_some() {
                if let Err(error) = self.read_on(&mut connection, &mut handover) {
                    connection = None;
                    handover.give(Err(error), None);
                }
            } else if !handover.wait() {
                connection = None;
            }
        }
    }

    /// Reads what is asked for, or as much of it as one scan yields, and gives it.
    fn read_on(
        &self,
        connection: &mut Option<(Session, EventReader)>,
        handover: &mut Handover<'_>,
    ) -> Result<(), Error> {
        let Some(range) = handover.range.clone() else { return Ok(()) };
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
        let scanned = events.scan(session, range, |batch| {
            let request = handover.number;
            late = handover.give(Ok(batch), Some(SCAN_PATIENCE));
            late.is_none() && handover.number == request && handover.is_open
        });
        scanned.map_err(ReadError::into_error)?;
        if let Some(batch) = late {
            handover.give(batch, None);
            // By now the runner may well wait for it.
            handover.taken_at_once = 0;
        }
        Ok(())
    }

    fn connect(&self) -> Result<(Session, EventReader), Error> {
        let preparing = || Error::database("preparing to read events");
        let mut session = Session::new(self.pool.get(POOL_PATIENCE)?, self.sessions).map_err(preparing())?;
        let events = session
            .run(|client| EventReader::prepare(client, &self.names, self.scope.clone(), self.bounds, false))
            .map_err(preparing())?;
        Ok((session, events))
    }
}

/// Where a reader is asked, and hands over what it read.
struct Handover<'a> {
    inbox: &'a Receiver<Request>,
    outbox: &'a Sender<Answer>,
    pulse: &'a Pulse,
    /// The number of the last request, and what is left of its range.
    number: u64,
    range: Option<Range>,
    /// How many batches were taken at once, one after the other.
    taken_at_once: usize,
    /// Whether there still is a runner.
    is_open: bool,
}

impl Handover<'_> {
    /// Waits to be asked. False if nobody asked for a while.
    fn wait(&mut self) -> bool {
        match self.inbox.recv_timeout(KEEP_CONNECTION) {
            Err(RecvTimeoutError::Timeout) => return false,
            request => self.asked(request.ok()),
        }
        true
    }

    /// Gives what was read to the runner, as soon as it takes it or asks for something else; or returns it, if there is an end to the
    /// patience and it comes first.
    fn give(&mut self, read: Result<Batch, Error>, patience: Option<Duration>) -> Option<Result<Batch, Error>> {
        let following = self.range.as_ref().and_then(|range| range.following(read.as_ref().ok()?));
        let enough = patience.map_or_else(never, after);
        let offered = Instant::now();
        // The runner's handler may take as long as it likes.
        self.pulse.excuse();
        let kept = select! {
            send(self.outbox, Answer { request: self.number, batch: read }) -> sent => {
                self.range = following;
                self.taken_at_once = if offered.elapsed() < AT_ONCE { self.taken_at_once + 1 } else { 0 };
                self.is_open = sent.is_ok();
                None
            },
            recv(self.inbox) -> request => {
                self.asked(request.ok());
                None
            },
            recv(enough) -> _ => Some(read),
        };
        self.pulse.beat();
        kept
    }

    fn asked(&mut self, request: Option<Request>) {
        match request {
            Some(Request { number, range }) => (self.number, self.range) = (number, range),
            None => self.is_open = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Database, PoolOptions};
    use crate::event::Event;
    use crate::plan::KeySet;
    use crate::store::testing;

    fn ahead() -> (Ahead, Receiver<Request>) {
        let (requests, inbox) = bounded(1);
        let (_, answers) = bounded(0);
        (Ahead { requests, queued: inbox.clone(), answers, asked: 0, expected: None }, inbox)
    }

    fn range(after: i64) -> Range {
        Range { keys: KeySet::all(), after, upto: 30 }
    }

    fn answer(request: &Request, end: i64) -> Answer {
        Answer { request: request.number, batch: Ok(Batch { end, ..Batch::default() }) }
    }

    #[test]
    fn what_was_read_before_it_was_forgotten_is_not_taken_for_the_same_range_later() {
        let (mut ahead, inbox) = ahead();
        ahead.ask(&range(0));
        let before = inbox.try_recv().unwrap();
        ahead.forget();
        assert!(inbox.try_recv().unwrap().range.is_none(), "the reader stops");
        ahead.ask(&range(0));
        let now = inbox.try_recv().unwrap();
        assert!(ahead.accept(answer(&before, 10)).is_none(), "it may be from a server that is no more");
        assert!(ahead.accept(answer(&now, 10)).is_some());
    }

    #[test]
    fn what_is_on_its_way_is_not_asked_for_again() {
        let (mut ahead, inbox) = ahead();
        ahead.ask(&range(0));
        let request = inbox.try_recv().unwrap();
        ahead.ask(&range(0));
        assert!(ahead.accept(answer(&request, 10)).is_some());
        ahead.ask(&range(10));
        assert!(inbox.is_empty(), "the reader goes on by itself");
        ahead.ask(&range(5));
        assert_eq!(inbox.try_recv().unwrap().range, Some(range(5)), "elsewhere it does not");
        let request = Request { number: ahead.asked, range: None };
        assert!(ahead.accept(answer(&request, 30)).is_some());
        ahead.ask(&range(30));
        assert!(!inbox.is_empty(), "nor beyond the range's end");
    }

    #[test]
    fn who_asks_for_something_else_in_the_middle_of_a_scan_gets_that() {
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
        let reader = Reader { pool, sessions, names: Names::default(), scope: Scope::all(), bounds };
        let mut ahead = Ahead::spawn(&Crew::new(), "reader".into(), reader).unwrap();
        for after in [0, 500, 3, 777, 250, 16, 900] {
            ahead.ask(&Range { keys: KeySet::all(), after, upto: 1_000 });
            // Taken as soon as they come, so that most are of a scan.
            for batch in 0..4 {
                let found = loop {
                    let answer = ahead.answers.recv_timeout(Duration::from_secs(10)).unwrap();
                    if let Some(found) = ahead.accept(answer) {
                        break found.unwrap().events;
                    }
                };
                let positions: Vec<i64> = found.iter().map(Event::global_position).collect();
                let first = after + batch * 10 + 1;
                assert_eq!(positions, (first..first + 10).collect::<Vec<_>>());
            }
        }
    }
}
