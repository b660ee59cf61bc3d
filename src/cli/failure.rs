//! Why the program ends without success.

use std::fmt;
use std::process::ExitCode;

use super::output;
use crate::error::{BoxError, Error, describe_any};

#[derive(Debug)]
pub(super) enum Failure {
    /// A setting is missing or wrong.
    Setting(String),
    /// Anything else.
    Failed(BoxError),
}

impl Failure {
    /// Writes the failure to standard error, in addition to the log.
    pub(super) fn report(&self) {
        output::complain(&format!("error: {self}"));
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Setting(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(problem) => f.write_str(problem),
            Self::Failed(error) => f.write_str(&describe_any(&**error)),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.is_config() { Self::Setting(error.with_causes()) } else { Self::Failed(error.into()) }
    }
}

impl From<BoxError> for Failure {
    fn from(error: BoxError) -> Self {
        match error.downcast::<Error>() {
            Ok(error) => Self::from(*error),
            Err(error) => Self::Failed(error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}
