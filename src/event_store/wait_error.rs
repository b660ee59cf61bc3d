//! Why a caller that waits for a projection does not get what it waits for.

use std::time::Duration;

use postgres::error::{DbError, SqlState};

use crate::error::{describe_any, is_away, is_transient};
use crate::event::StreamId;
use crate::store::waiting::Standing;

/// Why [`EventStore::wait_for`](crate::EventStore::wait_for) stopped waiting. The events are
/// appended nevertheless.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// No worker has ever registered a projection of this name, or it was removed. Check the name,
    /// and that a worker with this projection is deployed.
    #[error("no worker has ever registered a projection {projection:?}: check the name, or start a worker that has it")]
    #[non_exhaustive]
    Unknown {
        /// The name that was given.
        projection: String,
    },

    /// The projection has not processed an event of this aggregate, because one failed and is
    /// parked, and no replay is requested. Correct the cause, then replay the aggregate or
    /// discard the event.
    #[error(
        "projection {projection:?} has parked {aggregate}: correct the cause, then replay the aggregate or discard the event: \
         {error}"
    )]
    #[non_exhaustive]
    Parked {
        /// The projection.
        projection: String,
        /// The aggregate whose events wait.
        aggregate: StreamId,
        /// The error of the first event that failed.
        error: String,
    },

    /// The projection has used up its attempts at an event before those that were awaited, or at
    /// one of them. It continues when the cause is corrected.
    #[error("projection {projection:?} has halted: correct the cause: {error}")]
    #[non_exhaustive]
    Halted {
        /// The projection.
        projection: String,
        /// The error of the event at which it halted.
        error: String,
    },

    /// An operator has paused the projection.
    #[error(
        "projection {projection:?} is paused{}{}: resume it",
        by.as_ref().map_or(String::new(), |by| format!(" by {by}")),
        reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"))
    )]
    #[non_exhaustive]
    Paused {
        /// The projection.
        projection: String,
        /// The person or role that has paused it, if that is recorded.
        by: Option<String>,
        /// The reason, if there is one.
        reason: Option<String>,
    },

    /// The projection was withdrawn from all workers, because its checkpoints were changed by hand.
    #[error("projection {projection:?} is processed by no worker until an operator repairs its checkpoints: {fault}")]
    #[non_exhaustive]
    Broken {
        /// The projection.
        projection: String,
        /// What is wrong.
        fault: String,
    },

    /// For ten seconds, no worker that has the projection was running.
    #[error("no worker runs projection {projection:?}: start one, or remove the projection")]
    #[non_exhaustive]
    NoWorker {
        /// The projection.
        projection: String,
    },

    /// The projection did not get there in time.
    #[error("projection {projection:?} {}", unreached(*position, *target, *timeout))]
    #[non_exhaustive]
    TimedOut {
        /// The first projection, in the order given, that did not get there.
        projection: String,
        /// Its checkpoint, for the keys of the events. `None` if there was none, or if the events
        /// were not visible.
        position: Option<i64>,
        /// The position of the last event within the projection's scope. `None` if the events were
        /// not visible: their transaction was not committed, or was rolled back, or they were
        /// deleted.
        target: Option<i64>,
        /// How long the caller was willing to wait.
        timeout: Duration,
    },

    /// The library's tables are missing, or are older than this library.
    #[error("the schema cannot be used: {problem}")]
    #[non_exhaustive]
    Schema {
        /// What is missing, and the remedy.
        problem: String,
    },

    /// The operating system refused to start a thread. One is needed if the caller's thread belongs
    /// to an asynchronous runtime.
    #[error("cannot start a thread to wait on")]
    #[non_exhaustive]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },

    /// The statement failed, on the connection that was given. If the user lacks a privilege, see
    /// [`EventStore::wait_for`](crate::EventStore::wait_for) for those that are needed.
    #[error("reading how far the projections are failed")]
    #[non_exhaustive]
    Database {
        /// What the server or the network said.
        source: postgres::Error,
    },
}

impl WaitError {
    /// Whether the projection was still on its way when the time was up.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }

    /// Whether waiting again may help without any change: the time was up, or the database failed
    /// for a transient reason; see [`Error::is_transient`](crate::Error::is_transient).
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            Self::Database { source } => is_away(source) || is_transient(source),
            _ => false,
        }
    }

    /// Returns the error and its causes in one text: see
    /// [`Error::with_causes`](crate::Error::with_causes).
    pub fn with_causes(&self) -> String {
        describe_any(self)
    }

    /// The outcome, as the metric names it.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown",
            Self::Parked { .. } => "parked",
            Self::Halted { .. } => "halted",
            Self::Paused { .. } => "paused",
            Self::Broken { .. } => "broken",
            Self::NoWorker { .. } => "no_worker",
            Self::TimedOut { .. } => "timed_out",
            Self::Schema { .. } | Self::Thread { .. } | Self::Database { .. } => "failed",
        }
    }

    /// The error of the statement. Names the remedy if a table is missing.
    pub(super) fn of_statement(source: postgres::Error) -> Self {
        let is_missing =
            |error: &&DbError| [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN].contains(error.code());
        match source.as_db_error().filter(is_missing) {
            Some(error) => Self::Schema {
                problem: format!(
                    "{}: migrate with Orchestrator::migrate() or the command `migrate` of a worker program, or apply Names::schema_sql()",
                    error.message()
                ),
            },
            None => Self::Database { source },
        }
    }

    /// The reason why a projection does not get there; `None` if it has got there, or still may.
    pub(super) fn of(projection: &str, standing: &Standing) -> Option<Self> {
        let projection = projection.to_owned();
        Some(match standing.clone() {
            Standing::Done | Standing::Behind { .. } => return None,
            Standing::Unknown => Self::Unknown { projection },
            Standing::Parked { aggregate, error } => Self::Parked { projection, aggregate, error },
            Standing::Broken { fault } => Self::Broken { projection, fault },
            Standing::Paused { by, reason } => Self::Paused { projection, by, reason },
            Standing::NoWorker => Self::NoWorker { projection },
            Standing::Halted { error } => Self::Halted { projection, error },
        })
    }
}

fn unreached(position: Option<i64>, target: Option<i64>, timeout: Duration) -> String {
    let waited = format!("within {timeout:?}");
    match (position, target) {
        (_, None) => format!(
            "cannot process the events: they were not visible {waited}: commit their transaction first; if it was rolled back, \
             there is nothing to wait for"
        ),
        (None, Some(target)) => {
            format!("did not reach position {target} {waited}: it has no checkpoint for the events")
        }
        (Some(position), Some(target)) => {
            format!(
                "did not reach position {target} {waited}: it is at {position}; wait longer, or see why it is behind"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_says_what_was_missing() {
        let projection = || "orders".to_owned();
        let timeout = Duration::from_secs(2);
        for (position, target, parts) in [
            (None, None, ["not visible within 2s", "commit their transaction"]),
            (None, Some(7), ["did not reach position 7 within 2s", "no checkpoint"]),
            (Some(3), Some(7), ["did not reach position 7 within 2s", "it is at 3"]),
        ] {
            let error = WaitError::TimedOut { projection: projection(), position, target, timeout };
            let message = error.to_string();
            for part in parts.into_iter().chain(["\"orders\""]) {
                assert!(message.contains(part), "{message:?} should contain {part:?}");
            }
            assert!(error.is_timeout() && error.is_transient());
        }
    }

    #[test]
    fn a_pause_says_by_whom_and_why_if_that_is_known() {
        let paused = |by: Option<&str>, reason: Option<&str>| {
            let (by, reason) = (by.map(str::to_owned), reason.map(str::to_owned));
            WaitError::of("orders", &Standing::Paused { by, reason }).unwrap().to_string()
        };
        assert_eq!(paused(None, None), "projection \"orders\" is paused: resume it");
        let message = "projection \"orders\" is paused by ann (a deploy): resume it";
        assert_eq!(paused(Some("ann"), Some("a deploy")), message);
    }
}
