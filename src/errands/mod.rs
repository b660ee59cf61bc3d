//! Errands: what one worker does for a command of an operator, because it takes long or needs the
//! code of the application.
//!
//! The thread takes no lock of the replica set for long. So a reset of millions of rows delays
//! neither heartbeats nor a change of the generation, nor any other projection.
//!
//! A crash at any point rolls the transaction back, and the coordinators let another worker start
//! again. A worker that was only considered dead cannot commit then: its attempt has another
//! number.

mod aggregate;
mod clearing;
mod ending;
mod failure;
mod finishing;
mod preparing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, select};

use self::failure::{DOING, Failure};
use crate::backoff::{Backoff, Mentions};
use crate::context::Context;
use crate::database::Database;
use crate::error::{Error, field};
use crate::plan::{Asked, Errand};
use crate::projection::Handler;
use crate::store::outcome::Outcome;
use crate::store::session::Session;
use crate::store::{Known, execution, forgetting};
use crate::threads::Waker;

/// How many attempts may fail before the command fails.
const ATTEMPTS: u32 = 3;
/// How often an attempt may be interrupted, for example by the loss of its connection. It may be
/// the reason itself.
const INTERRUPTIONS: u32 = 10;

/// The code of a projection, and what it declares about itself.
pub(crate) struct Code {
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) known: Known,
}

pub(crate) struct Errands {
    pub(crate) context: Context,
    pub(crate) code: BTreeMap<Arc<str>, Code>,
    /// Connects as the role that owns the tables of the read models, if that is another one.
    pub(crate) owner: Option<Database>,
    /// Which build of the program this is, if the application says so.
    pub(crate) build: Option<String>,
    /// See [`mark`](crate::store::fence::mark).
    pub(crate) idle_limit: Duration,
    pub(crate) orders: Receiver<Errand>,
    /// Wakes the coordinator, which does what is next.
    pub(crate) finished: Waker,
}

/// How an attempt has ended.
enum End {
    /// It has done the worker's part.
    Executed,
    /// The command has this outcome.
    Concluded(Outcome),
    /// Another worker has taken over, or the command is gone.
    Superseded,
}

impl Errands {
    pub(crate) fn run(&self) {
        loop {
            select! {
                recv(self.context.stop.heard()) -> _ => return,
                recv(self.orders) -> errand => match errand {
                    Ok(errand) => self.execute(&errand),
                    Err(_) => return,
                },
            }
            self.finished.wake();
        }
    }

    /// Executes a command until the worker's part is done, or the worker stops.
    fn execute(&self, errand: &Errand) {
        let (replica_set, worker, command) = (self.context.replica_set(), self.context.worker(), errand.asked.as_str());
        log::info!(
            "executing a command: replica_set={replica_set} worker={worker} projection={projection} command={command} attempt={}",
            errand.attempt,
            replica_set = field(&replica_set),
            projection = field(&errand.projection)
        );
        let (mut backoff, mut mentions) = (Backoff::for_connections(), Mentions::default());
        let (mut failed, mut interrupted) = (0, 0);
        loop {
            let failure = match self.attempt(errand) {
                Ok(end) => return self.ended(errand, &end),
                Err(failure) => failure,
            };
            match failure {
                Failure::Final(_) => failed += 1,
                Failure::Interrupted(_) => interrupted += 1,
                Failure::Passing(_) => {}
            }
            let mut error = failure.text().to_owned();
            // A switch that fails is put off. It has changed nothing.
            if failed >= ATTEMPTS || interrupted >= INTERRUPTIONS {
                let ended = if errand.is_finishing {
                    self.put_off(errand, &error)
                } else {
                    self.session().and_then(|mut session| {
                        self.conclude(&mut session, errand, Outcome::Failed(failed_text(errand.asked, &error)))
                    })
                };
                match ended {
                    Ok(end) => return self.ended(errand, &end),
                    Err(failure) => error = failure.with_causes(),
                }
            }
            if mentions.is_due() {
                log::warn!(
                    "command not executed, will retry: replica_set={replica_set} worker={worker} projection={projection} \
                     command={command} error={error}",
                    replica_set = field(&replica_set),
                    projection = field(&errand.projection),
                    error = field(&error)
                );
            }
            if self.context.stop.wait(backoff.next_delay()) {
                return;
            }
        }
    }

    fn attempt(&self, errand: &Errand) -> Result<End, Failure> {
        match (errand.asked, errand.is_finishing) {
            (Asked::Rewind, _) => self.rewind(errand),
            (Asked::Rebuild, false) => self.prepare(errand),
            (Asked::Rebuild, true) => self.finish(errand),
            (Asked::Cancel, _) => self.cancel(errand),
            (Asked::Revert, _) => self.revert(errand),
            (Asked::DropOld, _) => self.drop_old(errand),
            (Asked::RebuildAggregate, _) => self.rebuild_aggregate(errand),
            _ => Err(Failure::Final("a worker does not execute this command".to_owned())),
        }
    }

    fn ended(&self, errand: &Errand, end: &End) {
        if let End::Concluded(outcome) = end {
            self.context.command_applied(errand.asked, &errand.projection, errand.command, outcome);
        }
    }

    /// The code of the projection for which the command is.
    fn code_of(&self, errand: &Errand) -> Result<&Code, Failure> {
        let missing = || Failure::Final("this worker does not have its code".to_owned());
        self.code.get(&errand.projection).ok_or_else(missing)
    }

    /// Opens a connection for code of the application. It is none of the pool: the runners go on
    /// meanwhile, and may need all of those.
    fn session(&self) -> Result<Session, Error> {
        Session::open_for_handlers(&self.context.database, self.context.sessions)
    }

    /// Opens a connection as the role that owns the tables of the read models.
    fn session_of_owner(&self) -> Result<Session, Error> {
        match &self.owner {
            Some(owner) => Session::open(owner, self.context.sessions),
            None => self.context.open(),
        }
    }

    fn conclude(&self, session: &mut Session, errand: &Errand, outcome: Outcome) -> Result<End, Error> {
        let mut tx = session.transaction_without_policies().map_err(Error::database(DOING))?;
        let names = &self.context.names;
        // If it has let events wait, they do not wait any more.
        let released = match errand.asked {
            Asked::RebuildAggregate => {
                forgetting::release(&mut tx, names, &errand.projection, errand.command, false).map(|_| ())
            }
            _ => Ok(()),
        };
        let is_held = released
            .and_then(|()| execution::conclude(&mut tx, names, errand, self.context.worker(), &outcome))
            .map_err(Error::database(DOING))?;
        if !is_held {
            return Ok(End::Superseded);
        }
        tx.commit().map_err(Error::database(DOING))?;
        Ok(End::Concluded(outcome))
    }
}

/// Why a command has failed, for operators.
fn failed_text(asked: Asked, error: &str) -> String {
    match asked {
        Asked::Rewind => format!("its read model could not be cleared: {error}"),
        Asked::RebuildAggregate => format!("the rows of the aggregate stay as they were: {error}"),
        _ => format!("it could not be executed: {error}"),
    }
}
