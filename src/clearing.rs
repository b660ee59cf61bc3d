//! Clears the read model of a projection that is rewound: the thread that calls the projection's
//! `reset`.
//!
//! It has a thread of its own, and takes no lock of the replica set, so a reset of millions of rows
//! delays neither heartbeats nor a change of the generation, nor any other projection. No worker
//! owns the projection's checkpoints meanwhile. The transaction in which `reset` has worked locks
//! the command and the checkpoints last, and moves the checkpoints: so both are committed or none.
//!
//! A crash at any point rolls the transaction back, and the coordinators let another worker start
//! again. A worker that was only considered dead cannot commit then: its attempt has another
//! number.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use postgres::error::SqlState;

use crate::backoff::{Backoff, Mentions};
use crate::context::Context;
use crate::database::Pool;
use crate::error::{Error, describe_any, field, one_line, without_rows};
use crate::plan::{Asked, ToClear};
use crate::projection::{Handler, NoReset, Passing};
use crate::store::commands::{self, Outcome};
use crate::store::session::Session;
use crate::store::{fence, rewinding};
use crate::threads::{Waker, caught};
use crate::tx::{About, KeptStatements, Tx};

const CLEARING: &str = "clearing a read model";

/// How long to wait for a connection of the pool at a time.
const POOL_PATIENCE: Duration = Duration::from_secs(1);

const NO_RESET: &str = "it has no reset(): implement it, so that it clears the read model, and deploy that; or remove the projection and \
                        give it a new name";

/// How often `reset` may fail before the command fails.
const ATTEMPTS: u32 = 3;
/// How often a call of `reset` may be interrupted, for example by the loss of its connection. It
/// may be the reason itself.
const INTERRUPTIONS: u32 = 10;

pub(crate) struct Clearing {
    pub(crate) context: Context,
    pub(crate) handlers: BTreeMap<Arc<str>, Arc<dyn Handler>>,
    pub(crate) pool: Pool,
    /// See [`mark`](fence::mark).
    pub(crate) idle_limit: Duration,
    pub(crate) orders: Receiver<ToClear>,
    /// Wakes the coordinator, which deals the projection again.
    pub(crate) finished: Waker,
}

/// How an attempt has ended.
enum End {
    /// The read model is cleared, up to this position.
    Cleared(i64),
    /// The command has this outcome without it.
    Concluded(Outcome),
    /// Another worker has taken over, or the command is gone.
    Superseded,
}

/// Why an attempt was not finished.
enum Failure {
    /// The projection's `reset` is the reason, or the server because of it.
    Reset(String),
    /// It was interrupted: another transaction was in the way, or the connection is lost.
    Interrupted(String),
    /// It has not begun.
    Passing(String),
}

impl Failure {
    /// A failure of a statement of the library before `reset` is called.
    fn passing(error: postgres::Error) -> Self {
        let error = Error::database(CLEARING)(error);
        if commands::is_final(&error) { Self::Reset(error.with_causes()) } else { Self::of_library(&error) }
    }

    fn of_library(error: &Error) -> Self {
        Self::Passing(error.with_causes())
    }

    /// A failure of a statement of the library after `reset` has been called.
    fn after_reset(error: &Error) -> Self {
        if error.as_postgres().and_then(postgres::Error::code) == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) {
            return Self::Reset("reset() has ignored that one of its statements failed".to_owned());
        }
        if commands::is_final(error) {
            Self::Reset(error.with_causes())
        } else {
            Self::Interrupted(error.with_causes())
        }
    }
}

impl Clearing {
    pub(crate) fn run(&self) {
        loop {
            select! {
                recv(self.context.stop.heard()) -> _ => return,
                recv(self.orders) -> order => match order {
                    Ok(order) => self.clear(&order),
                    Err(_) => return,
                },
            }
            self.finished.wake();
        }
    }

    /// Executes an order until it has an outcome, or the worker stops.
    fn clear(&self, order: &ToClear) {
        let (replica_set, worker) = (self.context.replica_set(), self.context.worker());
        log::info!(
            "clearing the read model: replica_set={replica_set} worker={worker} projection={projection} attempt={}",
            order.attempt,
            replica_set = field(&replica_set),
            projection = field(&order.projection)
        );
        let (mut backoff, mut mentions) = (Backoff::for_connections(), Mentions::default());
        let (mut failed, mut interrupted) = (0, 0);
        loop {
            let error = match self.attempt(order) {
                Ok(end) => return self.ended(order, &end),
                Err(Failure::Passing(error)) => error,
                Err(failure @ (Failure::Reset(_) | Failure::Interrupted(_))) => {
                    let (Failure::Reset(error) | Failure::Interrupted(error) | Failure::Passing(error)) = &failure;
                    match failure {
                        Failure::Reset(_) => failed += 1,
                        _ => interrupted += 1,
                    }
                    if failed < ATTEMPTS && interrupted < INTERRUPTIONS {
                        error.clone()
                    } else {
                        let outcome = Outcome::Failed(format!("its read model could not be cleared: {error}"));
                        match self.session().and_then(|mut session| self.conclude(&mut session, order, outcome)) {
                            Ok(end) => return self.ended(order, &end),
                            Err(error) => error.with_causes(),
                        }
                    }
                }
            };
            if mentions.is_due() {
                log::warn!(
                    "read model not cleared, will retry: replica_set={replica_set} worker={worker} projection={projection} error={error}",
                    replica_set = field(&replica_set),
                    projection = field(&order.projection),
                    error = field(&error)
                );
            }
            if self.context.stop.wait(backoff.next_delay()) {
                return;
            }
        }
    }

    fn ended(&self, order: &ToClear, end: &End) {
        let (replica_set, worker) = (self.context.replica_set(), self.context.worker());
        match end {
            End::Cleared(position) => log::info!(
                "read model cleared: replica_set={replica_set} worker={worker} projection={projection} position={position}",
                replica_set = field(&replica_set),
                projection = field(&order.projection)
            ),
            End::Concluded(outcome) => {
                self.context.command_applied(Asked::Rewind, &order.projection, order.command, outcome);
            }
            End::Superseded => {}
        }
    }

    fn session(&self) -> Result<Session, Error> {
        let client = self.pool.get(POOL_PATIENCE)?;
        Ok(Session::for_handlers(client, self.context.sessions))
    }

    fn attempt(&self, order: &ToClear) -> Result<End, Failure> {
        let names = &self.context.names;
        let Some(handler) = self.handlers.get(&order.projection) else {
            return Err(Failure::Reset("this worker does not have its code".to_owned()));
        };
        let mut session = self.session().map_err(|error| Failure::of_library(&error))?;
        let (to, highest) = {
            let mut tx = session.transaction_without_policies().map_err(Failure::passing)?;
            let to = rewinding::position_of(&mut tx, names, order.command).map_err(Failure::passing)?;
            let highest = rewinding::highest(&mut tx, names, &order.projection).map_err(Failure::passing)?;
            tx.commit().map_err(Failure::passing)?;
            (to, highest)
        };
        let Some(to) = to else { return Ok(End::Superseded) };
        let refused = if highest.is_none_or(|highest| highest <= to) {
            commands::not_above(highest, to)
        } else {
            match self.reset(&mut session, order, &**handler, to) {
                Ok(end) => return Ok(end),
                Err(ResetFailure::Missing) => Outcome::Refused(NO_RESET.to_owned()),
                Err(ResetFailure::Other(failure)) => return Err(failure),
            }
        };
        self.conclude(&mut session, order, refused).map_err(|error| Failure::of_library(&error))
    }

    /// Calls the projection's `reset`, and moves its checkpoints in the same transaction.
    fn reset(
        &self,
        session: &mut Session,
        order: &ToClear,
        handler: &dyn Handler,
        to: i64,
    ) -> Result<End, ResetFailure> {
        let begun = Instant::now();
        let mut kept = KeptStatements::default();
        let is_pause_requested = || self.context.stop.is_raised();
        let about = About {
            projection: &order.projection,
            generation: 0,
            is_replay: true,
            is_pause_requested: &is_pause_requested,
        };
        let transaction = session.transaction().map_err(Failure::passing)?;
        let mut tx = Tx::new(transaction, &mut kept, about);
        let mark = fence::mark(&mut tx, self.context.sessions, self.idle_limit).map_err(Failure::passing)?;
        let reset =
            caught(|| handler.reset(&mut tx, to)).unwrap_or_else(|panic| Err(format!("it panicked: {panic}").into()));
        if let Err(error) = reset {
            if error.is::<NoReset>() {
                return Err(ResetFailure::Missing);
            }
            let text = shown(&*error);
            drop(tx);
            let is_interrupted = session.is_closed() || has_passed(&*error);
            return Err(if is_interrupted { Failure::Interrupted(text) } else { Failure::Reset(text) }.into());
        }
        let doing = || Error::database(CLEARING);
        let is_marked = fence::is_marked(&mut *tx, &mark);
        if !is_marked.map_err(|error| Failure::after_reset(&doing()(error)))? {
            return Err(Failure::Reset("reset() has ended the transaction that it was given".to_owned()).into());
        }
        let worker = self.context.worker();
        let is_held = rewinding::rewind(&mut tx, &self.context.names, order, worker, to, begun.elapsed().as_secs_f64())
            .map_err(|error| Failure::after_reset(&error))?;
        if !is_held {
            return Ok(End::Superseded);
        }
        // A deferred constraint of the application may fail here.
        tx.commit().map(|()| End::Cleared(to)).map_err(|error| Failure::after_reset(&doing()(error)).into())
    }

    fn conclude(&self, session: &mut Session, order: &ToClear, outcome: Outcome) -> Result<End, Error> {
        let mut tx = session.transaction_without_policies().map_err(Error::database(CLEARING))?;
        let is_held = rewinding::fail(&mut tx, &self.context.names, order, self.context.worker(), &outcome)
            .and_then(|is_held| tx.commit().map(|()| is_held))
            .map_err(Error::database(CLEARING))?;
        Ok(if is_held { End::Concluded(outcome) } else { End::Superseded })
    }
}

/// Why calling `reset` has not cleared the read model.
enum ResetFailure {
    /// The projection does not have it.
    Missing,
    Other(Failure),
}

impl From<Failure> for ResetFailure {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

/// Whether the cause of an error of the application passes by itself.
fn has_passed(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let code = cause.downcast_ref::<postgres::Error>().and_then(postgres::Error::code);
        cause.is::<Passing>() || code.is_some_and(commands::is_passing)
    })
}

/// An error of the application, as it may be stored and shown.
fn shown(error: &(dyn std::error::Error + 'static)) -> String {
    one_line(&without_rows(&describe_any(error)))
}
