//! The overview: what the whole replica set looks like. It is loaded only while clients request it.
//!
//! *Invariants:* a client never waits for the database, and for any number of clients the database
//! is queried at most once per [`FRESH_FOR`]. A request is a hint: it wakes the coordinator, which
//! loads the overview on its own connection and leaves it here. While the database cannot be
//! reached, the last overview stays and becomes older.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::value::RawValue;

use crate::error::Error;
use crate::store::session::Session;
use crate::store::{Names, overview};
use crate::threads::Waker;

/// For how long an overview is considered fresh.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// A client that has requested the overview is expected to request it again within this time.
const WATCHED_FOR: Duration = Duration::from_secs(3);

/// The place where clients and the coordinator meet. Clones are the same place.
#[derive(Debug, Clone)]
pub(crate) struct Overview {
    cells: Arc<Mutex<Cells>>,
    /// Wakes the coordinator.
    coordinator: Waker,
}

#[derive(Debug, Default)]
struct Cells {
    looked_at: Option<Instant>,
    asked_at: Option<Instant>,
    latest: Option<Sight>,
}

/// An overview, and when it was loaded.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    /// When the database was queried.
    pub(crate) at: Instant,
    pub(crate) json: Arc<RawValue>,
}

impl Overview {
    pub(crate) fn new(coordinator: Waker) -> Self {
        Self { cells: Arc::default(), coordinator }
    }

    /// Returns the last overview; `None` before the first. Wakes the coordinator to load another if
    /// that is old.
    pub(crate) fn look(&self) -> Option<Sight> {
        let mut cells = self.cells.lock();
        let now = Instant::now();
        cells.looked_at = Some(now);
        let is_due = cells.is_due(now);
        let latest = cells.latest.clone();
        drop(cells);
        if is_due {
            self.coordinator.wake();
        }
        latest
    }

    /// Loads the overview, if clients request it and it is due.
    pub(crate) fn refresh(&self, session: &mut Session, names: &Names, replica_set: &str) -> Result<(), Error> {
        let at = Instant::now();
        {
            let mut cells = self.cells.lock();
            if !cells.is_due(at) {
                return Ok(());
            }
            // Recorded before the outcome is known, so that a failing statement is not repeated
            // more often than a successful one.
            cells.asked_at = Some(at);
        }
        let json = session
            .run(|client| overview::load(client, names, replica_set))
            .map_err(Error::database("loading the overview"))?;
        self.cells.lock().latest = Some(Sight { at, json: json.into() });
        Ok(())
    }
}

impl Cells {
    fn is_due(&self, now: Instant) -> bool {
        let within = |moment: Option<Instant>, time| moment.is_some_and(|at| now.saturating_duration_since(at) < time);
        within(self.looked_at, WATCHED_FOR) && !within(self.asked_at, FRESH_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overview_is_due_once_a_second_while_it_is_viewed() {
        let start = Instant::now();
        let at = |millis| Some(start + Duration::from_millis(millis));
        for (looked_at, asked_at, now, due) in [
            (None, None, 0, false),
            (at(0), None, 0, true),
            (at(0), None, 2_999, true),
            (at(0), None, 3_000, false),
            (at(500), at(500), 1_499, false),
            (at(500), at(500), 1_500, true),
            (at(500), at(3_000), 3_600, false),
        ] {
            let cells = Cells { looked_at, asked_at, latest: None };
            assert_eq!(cells.is_due(at(now).unwrap()), due, "{looked_at:?} {asked_at:?} {now}");
        }
    }

    #[test]
    fn a_viewer_wakes_the_coordinator_only_if_one_is_due() {
        let (coordinator, woken) = Waker::new();
        let overview = Overview::new(coordinator);
        assert!(overview.look().is_none());
        assert!(overview.look().is_none());
        assert_eq!(woken.try_iter().count(), 1, "it is woken once");
        overview.cells.lock().asked_at = Some(Instant::now());
        overview.look();
        assert_eq!(woken.try_iter().count(), 0, "it has just looked");
    }
}
