//! Reading ahead: while a runner's handler works on one batch, a thread of its own reads the next on another connection.
//!
//! Asked for a range, the reader goes through it batch by batch, until the range is exhausted or it is asked for another. It hands a batch
//! over when the runner takes it, so it is one batch ahead and no more.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use crate::database::{Pool, PooledClient};
use crate::error::Error;
use crate::projection::Scope;
use crate::store::Names;
use crate::store::events::{Batch, Bounds, EventReader, Range};
use crate::threads::{Crew, Pulse};

/// How long an idle reader keeps its connection.
const KEEP_CONNECTION: Duration = Duration::from_secs(5);
/// How long a reader waits for a connection before it reports that there is none.
const POOL_PATIENCE: Duration = Duration::from_secs(5);

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
    pub(crate) names: Names,
    pub(crate) scope: Scope,
    pub(crate) bounds: Bounds,
}

impl Ahead {
    pub(crate) fn spawn(crew: &Crew, thread: String, reader: Reader) -> Result<Self, Error> {
        let (requests, inbox) = bounded(1);
        let (outbox, answers) = bounded(0);
        let queued = inbox.clone();
        crew.spawn(thread, move |pulse| reader.run(&inbox, &outbox, pulse))?;
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
        let mut connection = None;
        let mut number = 0;
        let mut range = None;
        loop {
            pulse.beat();
            let Some(reading) = range.take() else {
                match inbox.recv_timeout(KEEP_CONNECTION) {
                    Ok(request) => (number, range) = (request.number, request.range),
                    Err(RecvTimeoutError::Timeout) => connection = None,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                continue;
            };
            let batch = self.read(&mut connection, &reading);
            if batch.is_err() {
                connection = None;
            }
            let following = batch.as_ref().ok().and_then(|batch| reading.following(batch));
            // The runner's handler may take as long as it likes.
            pulse.excuse();
            select! {
                send(outbox, Answer { request: number, batch }) -> sent => match sent {
                    Ok(()) => range = following,
                    Err(_) => return,
                },
                recv(inbox) -> request => match request {
                    Ok(request) => (number, range) = (request.number, request.range),
                    Err(_) => return,
                },
            }
        }
    }

    fn read(&self, connection: &mut Option<(PooledClient, EventReader)>, range: &Range) -> Result<Batch, Error> {
        let doing = "reading events";
        let sound = if let Some(sound) = connection.take() {
            sound
        } else {
            let mut client = self.pool.get(POOL_PATIENCE)?;
            let events = EventReader::prepare(&mut client, &self.names, self.scope.clone(), self.bounds, false)
                .map_err(Error::database(doing))?;
            (client, events)
        };
        let (client, events) = connection.insert(sound);
        events.read(client, range).map_err(Error::database(doing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::KeySet;

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
}
