//! Why a batch did not commit. Pure.

use std::error::Error as StdError;

use postgres::error::SqlState;

use crate::error::{BoxError, Error, describe_any};
use crate::event::Event;

/// Why a batch did not commit. The [verdict](super::verdict) decides what to do about it.
#[derive(Debug)]
pub(super) enum Failure {
    /// The row is no longer this worker's, or not at the expected position. Nothing was committed.
    Fenced,
    /// A deadlock, a serialisation failure, or a connection that was lost or not available. Nothing
    /// was committed, or it is not known whether the commit succeeded.
    Transient(BoxError),
    /// No attempt will succeed: an operator must fix it. Nothing was committed.
    Refused(BoxError),
    /// The handler failed, or the server refused what it did. Nothing was committed.
    Handler {
        error: BoxError,
        /// How many events from the front of the batch to commit first, so that the failing event
        /// is alone.
        handled: usize,
    },
}

impl Failure {
    pub(super) fn transient(error: impl Into<BoxError>) -> Self {
        Self::Transient(error.into())
    }

    /// A failure to read the events.
    pub(super) fn of_reading(error: Error) -> Self {
        match error {
            Error::UnreadableEvent { .. } => Self::Refused(error.into()),
            error => Self::Transient(error.into()),
        }
    }

    /// A failure of the handler's statements or of its own code, after it has handled this many
    /// events.
    pub(super) fn of_handler(error: BoxError, handled: usize) -> Self {
        if is_transient(&*error) { Self::Transient(error) } else { Self::Handler { error, handled } }
    }

    /// The same failure, naming the first of the events that it concerns.
    pub(super) fn naming(self, events: &[Event]) -> Self {
        match self {
            Self::Handler { error, handled } => match events.get(handled) {
                Some(event) => {
                    let (position, id) = (event.global_position(), event.event_id());
                    let error = describe_any(&*error);
                    let error = format!("from global position {position} (event {id}) on: {error}").into();
                    Self::Handler { error, handled }
                }
                None => Self::Handler { error, handled },
            },
            failure => failure,
        }
    }

    /// Describes what went wrong.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Fenced => "the checkpoint is another worker's".to_owned(),
            Self::Transient(error) | Self::Refused(error) | Self::Handler { error, .. } => describe_any(&**error),
        }
    }
}

/// Whether an error is independent of the event that was being handled.
fn is_transient(error: &(dyn StdError + 'static)) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<postgres::Error>() {
            return match error.code() {
                Some(code) => is_transient_state(code),
                // The error did not come from the server: the connection failed, or the client
                // refused a value or a column.
                None => error.is_closed() || has_io_cause(error),
            };
        }
        cause = error.source();
    }
    false
}

fn is_transient_state(code: &SqlState) -> bool {
    const TRANSIENT: [SqlState; 11] = [
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        // After a failover the connection may still lead to the old primary, now a standby.
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::DATABASE_DROPPED,
        SqlState::SYSTEM_ERROR,
    ];
    const CONNECTION_EXCEPTIONS: &str = "08";
    TRANSIENT.contains(code) || code.code().starts_with(CONNECTION_EXCEPTIONS)
}

fn has_io_cause(error: &postgres::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<std::io::Error>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    #[test]
    fn states_that_say_nothing_about_the_event_are_transient() {
        for (code, transient) in [
            ("40001", true),
            ("40P01", true),
            ("57P01", true),
            ("08006", true),
            ("23505", false),
            ("22P02", false),
            ("42P01", false),
            ("25P02", false),
        ] {
            assert_eq!(is_transient_state(&SqlState::from_code(code)), transient, "{code}");
        }
    }

    #[test]
    fn lost_connections_are_transient_and_refused_values_are_not() {
        let mut client = testing::connect();
        let row = client.query_one("SELECT 'seven'", &[]).unwrap();
        assert!(!is_transient(&row.try_get::<_, i32>(0).unwrap_err()), "no attempt will make it a number");

        // The server may report it first, then the network does, and from then on the client.
        let mut lost = client.execute("SELECT pg_terminate_backend(pg_backend_pid())", &[]).unwrap_err();
        for _ in 0..3 {
            assert!(is_transient(&lost), "{lost:?}");
            lost = client.execute("SELECT", &[]).unwrap_err();
        }
        assert!(lost.is_closed() && is_transient(&lost), "{lost:?}");

        let nowhere = postgres::Config::new().host("/nobody/listens/here").user("app").connect(postgres::NoTls);
        let refused = nowhere.map(drop).unwrap_err();
        assert!(is_transient(&refused), "{refused:?}");
        let wrapped: BoxError = Box::new(Error::database("reading events")(refused));
        assert!(is_transient(&*wrapped), "also inside another error");
    }

    #[test]
    fn errors_of_a_handlers_own_code_are_not_transient() {
        let error: BoxError = "no such customer".into();
        assert!(!is_transient(&*error));
        let error: BoxError = Box::new(std::io::Error::other("the mail server is away"));
        assert!(!is_transient(&*error), "an effect outside PostgreSQL counts as the handler's");
    }
}
