//! Why an attempt at an errand was not finished.

use postgres::error::SqlState;

use crate::error::{Error, describe_any, one_line, without_rows};
use crate::projection::Passing;
use crate::store::commands;
use crate::store::read_model::Refusal;

pub(super) const DOING: &str = "executing a command";

pub(super) enum Failure {
    /// Another attempt would most likely fail in the same way.
    Final(String),
    /// It was interrupted: another transaction was in the way, or the connection is lost.
    Interrupted(String),
    /// It has not begun.
    Passing(String),
}

impl Failure {
    pub(super) fn text(&self) -> &str {
        let (Self::Final(text) | Self::Interrupted(text) | Self::Passing(text)) = self;
        text
    }

    /// A failure of a statement of the library before code of the application was called, or
    /// anything was changed.
    pub(super) fn passing(error: postgres::Error) -> Self {
        let error = Error::database(DOING)(error);
        if commands::is_final(&error) { Self::Final(error.with_causes()) } else { Self::of_library(&error) }
    }

    pub(super) fn of_library(error: &Error) -> Self {
        Self::Passing(error.with_causes())
    }

    /// A failure of a statement that changes something.
    pub(super) fn of_change(error: &Error) -> Self {
        if commands::is_final(error) {
            Self::Final(error.with_causes())
        } else {
            Self::Interrupted(error.with_causes())
        }
    }

    /// As [`of_change`](Self::of_change), for a failure of the driver.
    pub(super) fn changing(error: postgres::Error) -> Self {
        Self::of_change(&Error::database(DOING)(error))
    }

    /// A lock that was not free in time.
    pub(super) fn locking(error: postgres::Error) -> Self {
        Self::Interrupted(Error::database(DOING)(error).with_causes())
    }

    /// What the catalog does not allow.
    pub(super) fn of_refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Database(error) => Self::changing(error),
            refusal => Self::Final(refusal.to_string()),
        }
    }

    /// An error of code of the application, on a connection that may be closed now.
    pub(super) fn of_code(error: &(dyn std::error::Error + 'static), is_closed: bool) -> Self {
        let text = one_line(&without_rows(&describe_any(error)));
        if is_closed || has_passed(error) { Self::Interrupted(text) } else { Self::Final(text) }
    }

    /// A failure of a statement of the library after code of the application has been called.
    pub(super) fn after_code(error: &Error, code: &str) -> Self {
        if error.as_postgres().and_then(postgres::Error::code) == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) {
            return Self::Final(format!("{code} has ignored that one of its statements failed"));
        }
        Self::of_change(error)
    }
}

/// Whether the cause of an error of the application passes by itself.
fn has_passed(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let code = cause.downcast_ref::<postgres::Error>().and_then(postgres::Error::code);
        cause.is::<Passing>() || code.is_some_and(commands::is_passing)
    })
}
