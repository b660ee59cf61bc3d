//! Calls of the application's code.

use crate::error::BoxError;
use crate::threads::caught;

/// Calls code of the application. A panic is an error.
pub(crate) fn guarded<T>(code: impl FnOnce() -> Result<T, BoxError>) -> Result<T, BoxError> {
    caught(code).unwrap_or_else(|message| Err(panicked(&message)))
}

pub(super) fn panicked(message: &str) -> BoxError {
    format!("the handler panicked: {message}").into()
}
