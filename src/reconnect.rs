//! Keeps a thread connected: when its connection is lost, the thread opens another, after growing
//! delays.
//!
//! Losses are logged at most once every 30 s, even if the connection was regained in between. When
//! the connection works again after a logged loss, that is logged as well.

use std::time::Duration;

use crossbeam_channel::after;

use crate::backoff::{Backoff, Mentions};
use crate::context::Context;
use crate::error::{Error, field};

/// The connection of one thread.
pub(crate) struct Reconnect<'a> {
    context: &'a Context,
    /// Its name in the log and the metrics.
    connection: &'static str,
    backoff: Backoff,
    losses: Mentions,
    /// Whether the last log line about this connection is that it failed.
    is_failure_logged: bool,
}

/// Why serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// There is nothing left to do.
    Done,
    /// Serving was given up while there was no connection.
    GivenUp,
}

impl<'a> Reconnect<'a> {
    pub(crate) fn new(context: &'a Context, connection: &'static str) -> Self {
        Self {
            context,
            connection,
            backoff: Backoff::for_connections(),
            losses: Mentions::default(),
            is_failure_logged: false,
        }
    }

    /// Calls `serve` on one connection after another until it succeeds, or until it fails and
    /// `is_given_up` returns true. `judge` decides about each failure: it returns an error if
    /// another connection would not help.
    pub(crate) fn run<F>(
        &mut self,
        mut is_given_up: impl FnMut() -> bool,
        mut serve: impl FnMut(&mut Self) -> Result<(), F>,
        mut judge: impl FnMut(&mut Self, F) -> Result<(), Error>,
    ) -> Result<End, Error> {
        while !is_given_up() {
            let was_stopping = self.context.stop.is_raised();
            match serve(self) {
                Ok(()) => return Ok(End::Done),
                Err(failure) => judge(self, failure)?,
            }
            let delay = self.next_delay();
            if was_stopping {
                // The signal would cut every wait short, and a worker that is leaving would not
                // pause between its attempts.
                _ = after(delay).recv();
            } else {
                self.context.stop.wait(delay);
            }
        }
        Ok(End::GivenUp)
    }

    /// Reports that the connection is lost, or that none can be opened.
    pub(crate) fn lost(&mut self, error: &Error) {
        if self.losses.is_due() {
            self.is_failure_logged = true;
            log::warn!(
                "connection lost: replica_set={} worker={} connection={} error={error}",
                field(&self.context.replica_set()),
                self.context.worker(),
                field(&self.connection),
                error = field(&error)
            );
        }
        self.context.metrics.reconnects(self.connection).inc();
    }

    /// Whether a failure of another kind is to be logged now. If so, the recovery of the connection
    /// will be logged as well.
    pub(crate) fn is_worth_logging(&mut self) -> bool {
        let is_worth_it = self.backoff.is_worth_logging();
        self.is_failure_logged |= is_worth_it;
        is_worth_it
    }

    /// Records that the connection has served its purpose: the next failure begins a new series.
    pub(crate) fn works(&mut self) {
        self.backoff.reset();
        if std::mem::take(&mut self.is_failure_logged) {
            log::info!(
                "connection regained: replica_set={} worker={} connection={}",
                field(&self.context.replica_set()),
                self.context.worker(),
                field(&self.connection)
            );
        }
    }

    /// The delay before the next attempt, on this connection or another.
    pub(crate) fn next_delay(&mut self) -> Duration {
        self.backoff.next_delay()
    }
}
