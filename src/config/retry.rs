//! How a failing projection is retried.

use std::time::Duration;

use super::declare::{Declared, OptionOf, bounds, declare, quantity, setter, setters};
use super::options::with_retry_options;
use super::value::{Attempts, Bounds, DurationOrOff, Value};
use crate::error::Error;

with_retry_options! { declare! {
    /// How a failing projection is retried.
    ///
    /// A failure counts as an attempt if it comes from the handler: its errors, its panics, values
    /// that cannot be decoded, and the end of its connection or of the whole process while it runs.
    /// When the attempts are used up, the projection halts, and retries with one event after each
    /// [`halted_interval`](Self::halted_interval). Or it parks the event's aggregate; see
    /// [`OnFailure`](crate::OnFailure).
    ///
    /// A failure that other transactions, the network or the server cause does not count, and is
    /// always retried. Deadlocks, serialisation failures and lost connections are retried at once.
    /// A full disk, a lock or a statement that took too long, and failures that a handler returns
    /// as [`Passing`](crate::Passing) are retried after the delays of these settings.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pupsourcing_orchestrator::Retry;
    ///
    /// let retry = Retry::default()
    ///     .attempts(3)
    ///     .first_delay(Duration::from_millis(50))
    ///     .longest_delay(Duration::from_secs(5));
    /// ```
    #[derive(Debug, Clone, PartialEq, Eq)]
    #[must_use = "the methods return the changed settings"]
    pub struct Retry, named "retry.", with {}
} }

with_retry_options! { setters! { Retry () } }

impl Retry {
    /// Keeps a halted projection halted until the worker is restarted, the partitions are
    /// redistributed, the event is discarded, or an operator pauses and resumes the projection. An
    /// event that ended the process is not tried even then, until `attempts` and
    /// `attempt_position` of the projection's checkpoint are set to 0 and NULL.
    pub fn stay_halted(mut self) -> Self {
        self.halted_interval = None;
        self
    }

    /// Refuses settings that are out of bounds or contradict each other.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        for option in Self::OPTIONS {
            (option.check)(self)?;
        }
        if self.first_delay > self.longest_delay {
            return Err(Error::config(
                "retry.longest_delay",
                format!("{:?}", self.longest_delay),
                format!("it must be at least first_delay ({:?})", self.first_delay),
            ));
        }
        Ok(())
    }
}
