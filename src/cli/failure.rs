//! Why the program ends without success.

use std::fmt;
use std::process::ExitCode;

use super::output;
use crate::error::{BoxError, Error, describe_any, one_line, redacted};
use crate::operator::OperatorError;

#[derive(Debug)]
pub(super) enum Failure {
    /// A setting is missing or wrong.
    Setting(String),
    /// A command for a projection was refused.
    Refused(String),
    /// A command for a projection is recorded, and not applied yet as far as is known.
    Pending(String),
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
            Self::Refused(_) => ExitCode::from(3),
            Self::Pending(_) => ExitCode::from(4),
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(problem) | Self::Refused(problem) | Self::Pending(problem) => f.write_str(problem),
            Self::Failed(error) => f.write_str(&describe_any(&**error)),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.is_config() { Self::Setting(error.with_causes()) } else { Self::Failed(error.into()) }
    }
}

/// The texts contain what other operators and workers have written, so they become one line.
impl From<OperatorError> for Failure {
    fn from(error: OperatorError) -> Self {
        // The name of a projection may be a URL with a password, in the wrong place.
        let text = one_line(&redacted(&error.with_causes()));
        match error {
            _ if error.is_pending() => Self::Pending(text),
            OperatorError::Refused { .. } | OperatorError::Unknown { .. } | OperatorError::Elsewhere { .. } => {
                Self::Refused(text)
            }
            OperatorError::Invalid { .. } => Self::Setting(text),
            _ => Self::Failed(text.into()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_written_becomes_one_line() {
        let why = || "no\x1b[2J\nhook".to_owned();
        for error in [
            OperatorError::Refused { id: 7, why: why() },
            OperatorError::Failed { id: 7, why: why() },
            OperatorError::Forbidden { problem: why() },
        ] {
            let shown = Failure::from(error).to_string();
            assert!(shown.contains("no [2J hook") && !shown.contains(char::is_control), "{shown:?}");
        }
    }

    #[test]
    fn a_url_in_place_of_a_name_keeps_its_password() {
        let projection = "postgres://shop:secret@localhost/shop".to_owned();
        let shown = Failure::from(OperatorError::Unknown { projection, known: vec![] }).to_string();
        assert!(shown.contains("shop:***@localhost") && !shown.contains("secret"), "{shown}");
    }
}
