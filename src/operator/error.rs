//! Why a command has not taken effect.

use std::time::Duration;

use crate::error::{describe_any, is_away, is_transient};

/// Why a command has not taken effect, or not yet.
///
/// Only [`NoWorker`](Self::NoWorker), [`TimedOut`](Self::TimedOut) and a
/// [`Database`](Self::Database) error with a number leave a command behind that may still be
/// applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// The state of the projection does not allow the command. Nothing was changed.
    #[error("command {id} was refused: {why}")]
    #[non_exhaustive]
    Refused {
        /// The number of the command.
        id: i64,
        /// Why, and what to do.
        why: String,
    },

    /// The command was begun, and failed: the projection could not clear its read model, for
    /// example, or a rebuild was cancelled.
    #[error("command {id} has failed: {why}")]
    #[non_exhaustive]
    Failed {
        /// The number of the command.
        id: i64,
        /// Why, and what to do.
        why: String,
    },

    /// There is no such projection. No command was recorded.
    #[error("there is no projection {projection:?}: {}", listed(known))]
    #[non_exhaustive]
    Unknown {
        /// The name that was given.
        projection: String,
        /// The names that exist.
        known: Vec<String>,
    },

    /// The projection belongs to another replica set than that of this operator. No command was
    /// recorded.
    #[error(
        "projection {projection:?} belongs to the replica set {owner:?}, not to {expected:?}: give the command for {owner:?}"
    )]
    #[non_exhaustive]
    Elsewhere {
        /// The projection.
        projection: String,
        /// The replica set that processes it.
        owner: String,
        /// The replica set of this operator.
        expected: String,
    },

    /// The command is not valid. No command was recorded.
    #[error("the command is not valid: {problem}")]
    #[non_exhaustive]
    Invalid {
        /// What is wrong with it, and what would be accepted.
        problem: String,
    },

    /// The database user may not give commands, or may not see what was asked for. No command was
    /// recorded.
    #[error("{problem}: grant it as examples/postgres/roles.sql grants it to the operator, or connect as another user")]
    #[non_exhaustive]
    Forbidden {
        /// The server's message.
        problem: String,
    },

    /// No worker of the replica set is running. The command stays recorded, and is applied when one
    /// starts.
    #[error(
        "no worker of the replica set {replica_set:?} is running: command {id} stays recorded, and is applied when one starts"
    )]
    #[non_exhaustive]
    NoWorker {
        /// The number of the command.
        id: i64,
        /// The replica set.
        replica_set: String,
    },

    /// The command was not applied in time. It stays recorded, and may be applied at any moment.
    #[error(
        "command {id} was not applied within {waited:?}{}: it stays recorded, and a worker applies it as soon as it can; \
         the history shows its outcome",
        step.as_ref().map_or(String::new(), |step| format!(" (its step is {step:?})"))
    )]
    #[non_exhaustive]
    TimedOut {
        /// The number of the command.
        id: i64,
        /// How long the caller waited.
        waited: Duration,
        /// The step of a command that one worker executes: `executing`, then `executed`; of a
        /// rebuild, then `loading` and `finishing`.
        step: Option<String>,
    },

    /// The tables or the function are missing, or are those of another version.
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

    /// A statement failed.
    #[error("{}", match id {
        Some(id) => format!("command {id} is recorded, but its outcome cannot be read"),
        None => "the statement of the operator failed".to_owned(),
    })]
    #[non_exhaustive]
    Database {
        /// The number of the command, if it is recorded. If the connection was lost while the
        /// command was being recorded, it may be recorded nevertheless: see the history.
        id: Option<i64>,
        /// What the server or the network said.
        source: postgres::Error,
    },
}

impl OperatorError {
    /// The number of the command, if one was recorded.
    pub fn id(&self) -> Option<i64> {
        match self {
            Self::Refused { id, .. }
            | Self::Failed { id, .. }
            | Self::NoWorker { id, .. }
            | Self::TimedOut { id, .. } => Some(*id),
            Self::Database { id, .. } => *id,
            _ => None,
        }
    }

    /// Whether a command was recorded whose outcome is not known yet.
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::NoWorker { .. } | Self::TimedOut { .. } | Self::Database { id: Some(_), .. })
    }

    /// Whether the same call may succeed later without any change: see
    /// [`Error::is_transient`](crate::Error::is_transient).
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database { source, .. } if is_away(source) || is_transient(source))
    }

    /// Returns the error and its causes in one text: see
    /// [`Error::with_causes`](crate::Error::with_causes).
    pub fn with_causes(&self) -> String {
        describe_any(self)
    }
}

fn listed(known: &[String]) -> String {
    match known {
        [] => "no worker has ever registered one".to_owned(),
        known => format!("there are {}", known.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")),
    }
}
