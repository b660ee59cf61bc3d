//! Why the test kit could not do what a test asked for.

use std::fmt;

use crate::error::{self, BoxError, describe_any};

/// Why the test kit could not do what a test asked for: the text says what failed, and what to do.
///
/// Its `Debug` is its text, so that `unwrap` in a test shows it in readable form.
#[derive(Clone)]
pub struct Error(String);

impl Error {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For `map_err`: creates an error that says what could not be done, and why.
    pub(super) fn cannot<E: Into<BoxError>>(what: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self(format!("cannot {what}: {}", describe_any(&*error.into())))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<error::Error> for Error {
    fn from(error: error::Error) -> Self {
        Self(error.with_causes())
    }
}
