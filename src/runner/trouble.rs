//! What has gone wrong with the current batch, and how the runner makes the next attempt.

use std::time::{Duration, Instant};

use super::failure::Failure;
use super::suspicion::{Approach, Suspicion};
use super::verdict::{Attempts, Verdict};
use crate::backoff::Backoff;
use crate::config::Retry;
use crate::store::events::Batch;
use crate::store::fence::Checkpoint;

/// The first and the longest delay before a [`Verdict::Reload`] or a [`Verdict::Repeat`].
const RELOAD: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

pub(super) struct Trouble {
    attempts: Attempts,
    suspicion: Suspicion,
    /// The tokens of the rows whose recorded attempts have been taken into account. This runner
    /// knows the outcome of later attempts without the record.
    met: Vec<i64>,
    /// The delays before a [`Verdict::Retry`] or a [`Verdict::ReloadLater`].
    pub(super) retries: Backoff,
    /// The delays before a [`Verdict::Reload`] or a [`Verdict::Repeat`].
    pub(super) reloads: Backoff,
    halted_interval: Option<Duration>,
    /// How many events to commit first, if not the whole batch.
    pub(super) commit_first: Option<usize>,
    /// The next events must be read from the database and not from memory: they may have been
    /// repaired or erased since.
    pub(super) is_read_again: bool,
    is_failing: bool,
    halted: Option<Halted>,
}

/// What a halted runner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Halted {
    /// It waits, until this time if it is to try again by itself.
    Waiting { until: Option<Instant> },
    /// It tries one event.
    Trying,
}

impl Trouble {
    pub(super) fn new(retry: &Retry, parks: bool) -> Self {
        Self {
            attempts: Attempts::new(retry.attempts, parks),
            suspicion: Suspicion::new(),
            met: Vec::new(),
            retries: Backoff::new(retry.first_delay, retry.longest_delay),
            reloads: Backoff::new(RELOAD.0, RELOAD.1),
            halted_interval: retry.halted_interval,
            commit_first: None,
            is_read_again: false,
            is_failing: false,
            halted: None,
        }
    }

    /// Takes the attempt that is recorded in a row, if this is the first time that the row's events
    /// are to be handled. Returns whether there was one.
    pub(super) fn meets(&mut self, row: &Checkpoint) -> bool {
        if self.met.contains(&row.token) {
            return false;
        }
        self.met.push(row.token);
        if let Some(attempt) = row.attempt {
            self.suspicion.found(attempt);
            self.is_failing = true;
        }
        row.attempt.is_some()
    }

    /// Takes note that a row has got a new token from this runner.
    pub(super) fn renewed(&mut self, before: i64, after: i64) {
        if self.met.contains(&before) {
            self.met.push(after);
        }
    }

    /// How many attempts at the next events have ended uncleanly.
    pub(super) fn unclean_ends(&self) -> u32 {
        self.suspicion.attempts()
    }

    /// See [`Suspicion::unfinished`].
    pub(super) fn unfinished(&self) -> Option<u32> {
        self.suspicion.unfinished()
    }

    /// Decides how to handle a batch. All events up to `reached` are handled.
    pub(super) fn approach(&mut self, batch: &Batch, reached: i64) -> Approach {
        // An event that would be parked is not tried once more: parking is.
        let is_due = self.halted == Some(Halted::Trying) && !self.attempts.parks();
        match self.suspicion.approach(&batch.events, reached, batch.end, self.attempts.allowed(), is_due) {
            Approach::Handle { record, .. } if self.halted.is_some() => Approach::Handle { count: 1, record },
            approach => approach,
        }
    }

    /// Takes a failure, and returns what the runner is to do about it.
    pub(super) fn judge(&mut self, failure: &Failure) -> Verdict {
        self.is_read_again = true;
        match failure {
            Failure::Lost(_) => self.suspicion.ended_uncleanly(),
            Failure::Connection(_) => self.suspicion.interrupted(),
            _ => {}
        }
        let verdict = self.attempts.judge(failure);
        self.is_failing |=
            !matches!(verdict, Verdict::Reload | Verdict::Repeat | Verdict::CommitFirst(_) | Verdict::Fenced);
        let interval = self.halted_interval.filter(|_| verdict == Verdict::Halt);
        if matches!(verdict, Verdict::Halt | Verdict::HaltForGood) {
            self.halted = Some(Halted::Waiting { until: interval.map(|interval| Instant::now() + interval) });
        }
        verdict
    }

    /// How many attempts have ended as this one did.
    pub(super) fn attempts_at(&self, failure: &Failure) -> u32 {
        match failure {
            Failure::Suspected(_) | Failure::Lost(_) => self.suspicion.attempts(),
            _ => self.attempts.failed(),
        }
    }

    /// How many attempts to report to the database after a failure. `None` keeps the recorded
    /// attempt, because it tells about unclean ends.
    pub(super) fn attempts_to_report(&self, failure: &Failure) -> Option<u32> {
        let is_kept = match failure {
            Failure::Suspected(_) => true,
            Failure::Full(_) | Failure::Environment { .. } => self.suspicion.attempts() > 0,
            _ => false,
        };
        (!is_kept).then_some(self.attempts.failed())
    }

    pub(super) fn failed_attempts(&self) -> u32 {
        self.attempts.failed()
    }

    /// Whether the current batch has failed, and not only for a moment.
    pub(super) fn is_failing(&self) -> bool {
        self.is_failing
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halted.is_some()
    }

    /// Whether the runner is halted, and waits.
    pub(super) fn waits(&self) -> bool {
        matches!(self.halted, Some(Halted::Waiting { .. }))
    }

    /// How long a halted runner waits before it tries one event. `None` if it does not try again by
    /// itself.
    pub(super) fn halt_left(&self) -> Option<Duration> {
        match self.halted {
            Some(Halted::Waiting { until }) => until.map(|until| until.saturating_duration_since(Instant::now())),
            _ => self.halted_interval,
        }
    }

    /// Lets a halted runner try one event because an aggregate is no longer parked, unless it does
    /// not try again by itself.
    pub(super) fn released(&mut self) {
        if matches!(self.halted, Some(Halted::Waiting { until: Some(_) })) {
            self.try_again();
        }
    }

    /// Lets a halted runner try one event.
    pub(super) fn try_again(&mut self) {
        self.halted = Some(Halted::Trying);
    }

    /// Takes note that everything up to this position is committed.
    pub(super) fn committed(&mut self, position: i64) {
        self.suspicion.committed(position);
        self.overcome();
    }

    /// Resets everything that the failures have changed: a batch has been committed, or there is
    /// nothing to handle.
    pub(super) fn overcome(&mut self) {
        self.attempts.succeeded();
        self.retries.reset();
        self.reloads.reset();
        self.is_failing = false;
        self.halted = None;
    }
}
