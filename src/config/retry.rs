//! How a failing projection is retried.

use std::time::Duration;

use super::declare::{Declared, OptionOf, bounds, declare, quantity, setter, setters};
use super::options::with_retry_options;
use super::value::{Attempts, Bounds, Value};

with_retry_options! { declare! {
    /// How a failing projection is retried.
    ///
    /// Deadlocks, serialisation failures and lost connections do not count: they are always
    /// retried, at once.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pupsourcing_orchestrator::Retry;
    ///
    /// let retry = Retry::default().attempts(3).first_delay(Duration::from_millis(50)).longest_delay(Duration::from_secs(5));
    /// ```
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Retry, named "retry.", with {}
} }

with_retry_options! { setters! { Retry () } }
