//! What has gone wrong with the current batch, and how the runner makes the next attempt.

use std::time::Duration;

use super::failure::Failure;
use super::verdict::{Attempts, Verdict};
use crate::backoff::Backoff;
use crate::config::Retry;

/// The first and the longest delay before a runner reloads.
const RELOAD: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

pub(super) struct Trouble {
    attempts: Attempts,
    /// The delays between attempts that count.
    pub(super) retries: Backoff,
    /// The delays between attempts that do not count.
    pub(super) reloads: Backoff,
    /// How many events to commit first, if not the whole batch.
    pub(super) commit_first: Option<usize>,
    /// The next events must be read from the database and not from memory: they may have been
    /// repaired or erased since.
    pub(super) is_read_again: bool,
}

impl Trouble {
    pub(super) fn new(retry: &Retry) -> Self {
        Self {
            attempts: Attempts::new(retry.attempts),
            retries: Backoff::new(retry.first_delay, retry.longest_delay),
            reloads: Backoff::new(RELOAD.0, RELOAD.1),
            commit_first: None,
            is_read_again: false,
        }
    }

    /// Takes a failure, and returns what the runner is to do about it.
    pub(super) fn judge(&mut self, failure: &Failure) -> Verdict {
        self.is_read_again = true;
        self.attempts.judge(failure)
    }

    pub(super) fn failed_attempts(&self) -> u32 {
        self.attempts.failed()
    }

    /// Whether the handler has failed at the current batch.
    pub(super) fn is_failing(&self) -> bool {
        self.failed_attempts() > 0
    }

    /// Resets the delays before a reload: the database answers, and there is nothing to handle.
    pub(super) fn reset_reloads(&mut self) {
        self.reloads.reset();
    }

    /// Resets everything that the failures have changed: a batch has been committed.
    pub(super) fn overcome(&mut self) {
        self.attempts.succeeded();
        self.retries.reset();
        self.reloads.reset();
    }
}
