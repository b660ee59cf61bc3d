//! When a runner asks whether its projection has caught up for the first time.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::config::Retry;

/// How soon a runner asks again whether the others have arrived, and how late at most.
const AWAIT_OTHERS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What a runner knows about it.
#[derive(Debug)]
pub(super) struct Arrival {
    /// Where the head was when this runner arrived there.
    pub(super) at: Option<i64>,
    pub(super) due: Instant,
    delays: Backoff,
    /// The delays after an error of the projection.
    retries: Option<Backoff>,
}

impl Arrival {
    pub(super) fn new() -> Self {
        let delays = Backoff::new(AWAIT_OTHERS.0, AWAIT_OTHERS.1);
        Self { at: None, due: Instant::now(), delays, retries: None }
    }

    pub(super) fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    /// Waits for the others.
    pub(super) fn wait(&mut self) {
        self.due = Instant::now() + self.delays.next_delay();
    }

    pub(super) fn wait_after_error(&mut self, retry: &Retry) {
        let retries = self.retries.get_or_insert_with(|| Backoff::new(retry.first_delay, retry.longest_delay));
        self.due = Instant::now() + retries.next_delay();
    }
}
