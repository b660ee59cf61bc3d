//! What a runner does about a failure: try again, commit first what came before it, or give up.
//!
//! Attempts count only where the failure is the handler's. What befalls the connection, or the transaction by what others do, is tried
//! again for as long as it takes.

use std::time::Duration;

use super::retry::Failure;
use super::{Runner, Step, Work};
use crate::backoff::{Backoff, Mentions};
use crate::config::Retry;
use crate::error::{BoxError, describe_any, one_line};
use crate::status::ProjectionState;

/// How often the batch at hand has failed, and what has been said about it.
pub(super) struct Troubles {
    /// Failed attempts at the batch at hand, and the delays between them.
    attempts: u32,
    retries: Backoff,
    /// The delays between attempts that do not count.
    hiccups: Backoff,
    /// A deadlock may come with every other batch, and each attempt but one succeed.
    hiccup_mentions: Mentions,
    /// A handler may fail at every other event, and succeed when it is tried again.
    failure_mentions: Mentions,
    is_failure_logged: bool,
}

impl Troubles {
    pub(super) fn new(retry: &Retry) -> Self {
        Self {
            attempts: 0,
            retries: Backoff::new(retry.first_delay, retry.longest_delay),
            hiccups: Backoff::new(Duration::from_millis(5), Duration::from_millis(500)),
            hiccup_mentions: Mentions::default(),
            failure_mentions: Mentions::default(),
            is_failure_logged: false,
        }
    }

    /// Whether the handler has failed at the batch at hand.
    pub(super) fn is_failing(&self) -> bool {
        self.attempts > 0
    }

    /// The database answers, and there is nothing to handle.
    pub(super) fn is_connected(&mut self) {
        self.hiccups.reset();
    }
}

impl Runner {
    /// A batch has been committed.
    pub(super) fn overcome(&self, work: &mut Work) {
        let troubles = &mut work.troubles;
        if std::mem::take(&mut troubles.is_failure_logged) {
            log::info!(
                "handler succeeded again: replica_set={} worker={} projection={} attempts={}",
                self.board.replica_set(),
                work.owner.worker,
                self.projection.name(),
                troubles.attempts + 1
            );
        }
        troubles.attempts = 0;
        troubles.retries.reset();
        troubles.hiccups.reset();
    }

    /// Decides what a failure leads to.
    pub(super) fn failed(&mut self, work: &mut Work, failure: Failure) -> Step {
        self.ahead.forget();
        work.read_again();
        match failure {
            Failure::Fenced => {
                self.metrics.fenced.inc();
                log::info!(
                    "fenced: replica_set={} worker={} projection={} generation={}",
                    self.board.replica_set(),
                    work.owner.worker,
                    self.projection.name(),
                    work.owner.generation
                );
                Step::Fenced
            }
            Failure::Transient(error) => self.try_again(work, &error),
            Failure::Refused(error) => {
                self.metrics.errors.inc();
                work.troubles.attempts += 1;
                self.halt(work, &error)
            }
            Failure::Handler { handled, .. } if handled > 0 => {
                work.commit_first = Some(handled);
                Step::Again
            }
            Failure::Handler { error, .. } => self.try_again_or_halt(work, &error),
        }
    }

    fn try_again(&self, work: &mut Work, error: &BoxError) -> Step {
        // Whether the last commit went through is not known: the checkpoint tells.
        work.forget();
        self.metrics.retries.inc();
        if work.troubles.hiccup_mentions.is_due() {
            log::warn!(
                "batch failed, tried again: replica_set={} worker={} projection={} error={}",
                self.board.replica_set(),
                work.owner.worker,
                self.projection.name(),
                one_line(&describe_any(&**error))
            );
        }
        self.set_state(ProjectionState::Retrying, Some(error));
        Step::Delay(work.troubles.hiccups.next_delay())
    }

    fn try_again_or_halt(&self, work: &mut Work, error: &BoxError) -> Step {
        let (replica_set, worker, name) = (self.board.replica_set(), work.owner.worker, self.projection.name());
        let troubles = &mut work.troubles;
        self.metrics.errors.inc();
        troubles.attempts += 1;
        if troubles.attempts >= self.retry.attempts {
            return self.halt(work, error);
        }
        self.metrics.retries.inc();
        if troubles.failure_mentions.is_due() {
            troubles.is_failure_logged = true;
            log::warn!(
                "handler failed, tried again: replica_set={replica_set} worker={worker} projection={name} attempt={} error={}",
                troubles.attempts,
                one_line(error)
            );
        }
        self.set_state(ProjectionState::Retrying, Some(error));
        Step::Delay(troubles.retries.next_delay())
    }
    fn halt(&self, work: &Work, error: &BoxError) -> Step {
        log::error!(
            "projection halted: replica_set={} worker={} projection={} attempts={} error={}",
            self.board.replica_set(),
            work.owner.worker,
            self.projection.name(),
            work.troubles.attempts,
            one_line(error)
        );
        self.set_state(ProjectionState::Halted, Some(error));
        Step::Halt
    }
}
