//! The folds of the chaos worker: one has a state for each aggregate, the other one has five states
//! that all aggregates share.

use pupsourcing_orchestrator::{BoxError, Error, Event, Fold};
use serde::{Deserialize, Serialize};

use super::faults::Faults;

/// The number of keys that all aggregates share.
pub(crate) const SHARED_KEYS: i64 = 5;
/// An event of this type deletes the state of its aggregate.
pub(crate) const DELETES: &str = "Closed";

#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Sum {
    events: i64,
    last_version: i64,
    positions: i64,
}

/// Counts events and sums their positions.
pub(crate) struct Sums {
    name: &'static str,
    is_shared: bool,
    faults: Faults,
}

impl Sums {
    pub(crate) fn of_aggregates(faults: Faults) -> Self {
        Self { name: "aggregate_sums", is_shared: false, faults }
    }

    pub(crate) fn shared(faults: Faults) -> Self {
        Self { name: "shared_sums", is_shared: true, faults }
    }

    /// The SQL that creates the tables.
    #[allow(dead_code, reason = "the worker creates none")]
    pub(crate) fn tables_sql() -> Result<String, Error> {
        let [of_aggregates, shared] = [Self::of_aggregates, Self::shared].map(|fold| fold(Faults::default()));
        Ok(format!("{};\n{}", of_aggregates.table_sql()?, shared.table_sql()?))
    }
}

impl Fold for Sums {
    type State = Sum;

    fn name(&self) -> &str {
        self.name
    }

    fn key(&self, event: &Event) -> Option<String> {
        let shared = || format!("k{}", event.global_position() % SHARED_KEYS);
        Some(if self.is_shared { shared() } else { event.aggregate_id().to_owned() })
    }

    fn keys_are_shared(&self) -> bool {
        self.is_shared
    }

    fn apply(&self, state: Option<Sum>, event: &Event) -> Result<Option<Sum>, BoxError> {
        self.faults.before(event)?;
        let Sum { events, positions, .. } = state.unwrap_or_default();
        if !self.is_shared && event.event_type() == DELETES {
            return Ok(None);
        }
        Ok(Some(Sum {
            events: events + 1,
            last_version: event.aggregate_version(),
            positions: positions + event.global_position(),
        }))
    }
}
