//! Reading ahead: while a runner's handler works on one batch, a thread of its own reads the next on another connection.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use postgres::Statement;

use crate::database::{Pool, PooledClient};
use crate::error::Error;
use crate::projection::Scope;
use crate::store::Names;
use crate::store::events::{self, Batch, Bounds, Range};
use crate::threads::Crew;

/// How long an idle reader keeps its connection.
const KEEP_CONNECTION: Duration = Duration::from_secs(5);
/// How long a reader waits for a connection before it reports that there is none.
const POOL_PATIENCE: Duration = Duration::from_secs(5);

/// What was asked for, and what was found.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) range: Range,
    pub(crate) batch: Result<Batch, Error>,
}

/// A runner's handle to its reader. Dropping it ends the reader.
#[derive(Debug)]
pub(crate) struct Ahead {
    requests: Sender<Range>,
    /// The other end of `requests`, to take back what has not been begun.
    queued: Receiver<Range>,
    pub(crate) answers: Receiver<Answer>,
    asked: Option<Range>,
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
        // One answer nobody wants any more may be waiting while the next is made.
        let (outbox, answers) = bounded(2);
        let queued = inbox.clone();
        let stop = crew.stop().clone();
        crew.spawn(thread, move |pulse| {
            let mut connection = None;
            loop {
                pulse.beat();
                match inbox.recv_timeout(KEEP_CONNECTION) {
                    Err(RecvTimeoutError::Timeout) => connection = None,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Ok(range) => {
                        let batch = reader.read(&mut connection, &range);
                        if batch.is_err() {
                            connection = None;
                        }
                        if outbox.send(Answer { range, batch }).is_err() {
                            return;
                        }
                    }
                }
                if stop.is_raised() {
                    return;
                }
            }
        })?;
        Ok(Self { requests, queued, answers, asked: None })
    }

    /// Asks for the first events of a range, unless they have been asked for already. Where the range ends does not matter: the head
    /// only moves on, and so an earlier question was for the same events.
    pub(crate) fn ask(&mut self, range: &Range) {
        if self.asked.as_ref().is_some_and(|asked| asked.after == range.after && asked.keys == range.keys) {
            return;
        }
        while self.queued.try_recv().is_ok() {}
        while !matches!(self.answers.try_recv(), Err(TryRecvError::Empty | TryRecvError::Disconnected)) {}
        // There is room: only this thread sends. If the reader has ended, the worker is stopping.
        _ = self.requests.try_send(range.clone());
        self.asked = Some(range.clone());
    }

    /// Takes an answer; `None` if it is not to what was asked for last.
    pub(crate) fn accept(&mut self, answer: Answer) -> Option<Result<Batch, Error>> {
        if self.asked.as_ref() != Some(&answer.range) {
            return None;
        }
        self.asked = None;
        Some(answer.batch)
    }

    /// Forgets what was asked for: the answer is not wanted any more.
    pub(crate) fn forget(&mut self) {
        self.asked = None;
    }
}

impl Reader {
    fn read(&self, connection: &mut Option<(PooledClient, Statement)>, range: &Range) -> Result<Batch, Error> {
        let doing = "reading events";
        let sound = if let Some(sound) = connection.take() {
            sound
        } else {
            let mut client = self.pool.get(POOL_PATIENCE)?;
            let statement = events::prepare_read(&mut client, &self.names).map_err(Error::database(doing))?;
            (client, statement)
        };
        let (client, statement) = connection.insert(sound);
        events::read(client, statement, range, &self.scope, self.bounds).map_err(Error::database(doing))
    }
}
