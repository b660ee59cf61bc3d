//! What has gone wrong with the batch in hand, and how the runner goes about the next attempt.

use std::time::Duration;

use super::failure::Failure;
use super::verdict::{Attempts, Verdict};
use crate::backoff::Backoff;
use crate::config::Retry;

/// The delays before a runner loads again, the first and the longest.
const RELOAD: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

pub(super) struct Trouble {
    attempts: Attempts,
    /// The delays between attempts that count.
    pub(super) retries: Backoff,
    /// The delays between attempts that do not.
    pub(super) reloads: Backoff,
    /// So many events are to be committed first.
    pub(super) commit_first: Option<usize>,
    /// What comes next is to be read from the database and not from memory: it may have been
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

    /// Takes a failure and says what it leads to.
    pub(super) fn judge(&mut self, failure: &Failure) -> Verdict {
        self.is_read_again = true;
        self.attempts.judge(failure)
    }

    pub(super) fn failed_attempts(&self) -> u32 {
        self.attempts.failed()
    }

    /// Whether the handler has failed at the batch in hand.
    pub(super) fn is_failing(&self) -> bool {
        self.failed_attempts() > 0
    }

    /// The database answers, and there is nothing to handle.
    pub(super) fn is_connected(&mut self) {
        self.reloads.reset();
    }

    /// A batch has been committed.
    pub(super) fn overcome(&mut self) {
        self.attempts.succeeded();
        self.retries.reset();
        self.reloads.reset();
    }
}
