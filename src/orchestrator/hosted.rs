//! What a projection declares about itself. Its methods are called once, before anything is
//! started, so that a panic of the user's code is an error of [`build`](super::Builder::build).

use std::sync::Arc;

use crate::config::{Config, Options, Settings};
use crate::error::Error;
use crate::projection::{Handler, Work};
use crate::scope::StartAt;
use crate::store::Known;
use crate::store::folds::FoldTable;
use crate::threads::caught;

/// A projection, and what it declares about itself.
#[derive(Clone)]
pub(super) struct Hosted {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) known: Known,
    pub(super) settings: Settings,
}

/// Changes a projection's options.
pub(super) type Change = Box<dyn FnOnce(Options) -> Options + Send>;

impl Hosted {
    pub(super) fn new(handler: Arc<dyn Handler>, change: Change, config: &Config) -> Result<Self, Error> {
        let name = asked("name() of a projection", || handler.name().to_owned())?;
        let start_at = asked(&format!("start_at() of projection {name:?}"), || handler.start_at())?;
        let scope = asked(&format!("scope() of projection {name:?}"), || handler.scope())?;
        if let Some(problem) = scope.problem() {
            return Err(Error::config(format!("scope of projection {name:?}"), "unusable", problem));
        }
        let options = asked(&format!("options() of projection {name:?}"), || change(handler.options()))?;
        let settings = config.settings_of(&name, &options, matches!(handler.work(), Work::Reacts(_)))?;
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
        let mut tables: Vec<String> = asked(&format!("tables() of projection {name:?}"), || {
            handler.tables().iter().map(|table| (*table).to_owned()).collect()
        })?;
        let fold = asked(&format!("table() or columns() of fold {name:?}"), || handler.fold_table().cloned())?;
        if let Some(fold) = &fold {
            fold.validate()?;
            tables.push(fold.name.clone());
        }
        Ok(Self {
            handler,
            known: Known { name, start_at, scope, version, lanes: settings.lanes, tables, fold },
            settings,
        })
    }

    /// The lanes of all projections together.
    pub(super) fn lanes(all: &[Self]) -> usize {
        all.iter().map(|hosted| hosted.settings.lanes).sum()
    }

    /// The tables of the folds among them.
    pub(super) fn folds(all: &[Self]) -> Vec<FoldTable> {
        all.iter().filter_map(|hosted| hosted.known.fold.clone()).collect()
    }

    pub(super) fn name(&self) -> &str {
        &self.known.name
    }
}

fn asked<T>(method: &str, answer: impl FnOnce() -> T) -> Result<T, Error> {
    caught(answer).map_err(|message| Error::config(method, "unknown", format!("it panicked: {message}")))
}
