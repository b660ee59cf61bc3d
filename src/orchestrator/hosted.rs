//! What a projection declares about itself. Its methods are called once, before anything is
//! started, so that a panic of the user's code is an error of [`build`](super::Builder::build).

use std::sync::Arc;

use crate::config::{OnFailure, Retry};
use crate::error::Error;
use crate::projection::Handler;
use crate::scope::StartAt;
use crate::store::Known;
use crate::threads::caught;

/// A projection, and what it declares about itself.
#[derive(Clone)]
pub(super) struct Hosted {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) known: Known,
    /// The projection's own settings, if it has any.
    pub(super) retry: Option<Retry>,
    pub(super) on_failure: Option<OnFailure>,
}

impl Hosted {
    pub(super) fn new(handler: Arc<dyn Handler>) -> Result<Self, Error> {
        let name = asked("name() of a projection", || handler.name().to_owned())?;
        let start_at = asked(&format!("start_at() of projection {name:?}"), || handler.start_at())?;
        let scope = asked(&format!("scope() of projection {name:?}"), || handler.scope())?;
        if let Some(problem) = scope.problem() {
            return Err(Error::config(format!("scope of projection {name:?}"), "unusable", problem));
        }
        let retry = asked(&format!("retry() of projection {name:?}"), || handler.retry())?;
        if let Some(retry) = &retry {
            retry.validate().map_err(|error| match error {
                Error::InvalidConfig { field, value, problem } => {
                    Error::config(format!("{field} of projection {name:?}"), value, problem)
                }
                error => error,
            })?;
        }
        let on_failure = asked(&format!("on_failure() of projection {name:?}"), || handler.on_failure())?;
        if on_failure.is_some_and(|policy| policy.at_most() == Some(0)) {
            let problem = "it must be at least 1, or OnFailure::Halt";
            return Err(Error::config(format!("on_failure at_most of projection {name:?}"), "0", problem));
        }
        if let StartAt::Position(position @ ..0) = start_at {
            let problem =
                format!("projection {name:?} cannot start there: positions begin with 1, and 0 is before the first");
            return Err(Error::config("start_at", position.to_string(), problem));
        }
        let version = asked(&format!("version() of projection {name:?}"), || handler.version())?;
        let version = i32::try_from(version).ok().filter(|version| *version > 0).ok_or_else(|| {
            let problem = format!("it must be between 1 and {}", i32::MAX);
            Error::config(format!("version of projection {name:?}"), version.to_string(), problem)
        })?;
        let tables: Vec<String> = asked(&format!("tables() of projection {name:?}"), || {
            handler.tables().iter().map(|table| (*table).to_owned()).collect()
        })?;
        Ok(Self { handler, known: Known { name, start_at, scope, version, tables }, retry, on_failure })
    }

    pub(super) fn name(&self) -> &str {
        &self.known.name
    }
}

fn asked<T>(method: &str, answer: impl FnOnce() -> T) -> Result<T, Error> {
    caught(answer).map_err(|message| Error::config(method, "unknown", format!("it panicked: {message}")))
}
