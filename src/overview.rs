//! The overview: the state of the whole replica set. It is loaded only while clients request it.
//!
//! *Invariants:* a client never waits for the database, and for any number of clients the database
//! is queried at most once per [`FRESH_FOR`]. A request is a hint: the thread that
//! [measures](crate::measure) sees it, loads the overview and stores it here. While the database
//! cannot be reached, the last overview stays and becomes older.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::value::RawValue;

/// For how long an overview is considered fresh.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// A client that has requested the overview is expected to request it again within this time.
const WATCHED_FOR: Duration = Duration::from_secs(3);

/// The place where a thread stores the overview and clients read it. Clones share the same place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overview(Arc<Mutex<Cells>>);

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
    /// Returns the last overview; `None` before the first. If that is old, the listener then loads
    /// another one.
    pub(crate) fn look(&self) -> Option<Sight> {
        let mut cells = self.0.lock();
        cells.looked_at = Some(Instant::now());
        cells.latest.clone()
    }

    /// The time until the overview is to be loaded; `None` while no client requests it.
    pub(crate) fn due_in(&self) -> Option<Duration> {
        self.0.lock().due_in(Instant::now())
    }

    /// Loads the overview, if it is due.
    pub(crate) fn refresh<E>(&self, load: impl FnOnce() -> Result<Box<RawValue>, E>) -> Result<(), E> {
        let at = Instant::now();
        {
            let mut cells = self.0.lock();
            if cells.due_in(at) != Some(Duration::ZERO) {
                return Ok(());
            }
            // Recorded before the outcome is known, so that a failing statement is not repeated
            // more often than a successful one.
            cells.asked_at = Some(at);
        }
        let json = load()?;
        self.0.lock().latest = Some(Sight { at, json: json.into() });
        Ok(())
    }
}

impl Cells {
    fn due_in(&self, now: Instant) -> Option<Duration> {
        let age = |moment: Instant| now.saturating_duration_since(moment);
        self.looked_at.filter(|at| age(*at) < WATCHED_FOR)?;
        Some(self.asked_at.map_or(Duration::ZERO, |at| FRESH_FOR.saturating_sub(age(at))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overview_is_due_once_a_second_while_it_is_viewed() {
        let start = Instant::now();
        let at = |millis| Some(start + Duration::from_millis(millis));
        for (looked_at, asked_at, now, due_in) in [
            (None, None, 0, None),
            (at(0), None, 0, Some(0)),
            (at(0), None, 2_999, Some(0)),
            (at(0), None, 3_000, None),
            (at(500), at(500), 1_499, Some(1)),
            (at(500), at(500), 1_500, Some(0)),
            (at(500), at(3_000), 3_400, Some(600)),
            (at(500), at(3_000), 3_600, None),
        ] {
            let cells = Cells { looked_at, asked_at, latest: None };
            let due_in = due_in.map(Duration::from_millis);
            assert_eq!(cells.due_in(at(now).unwrap()), due_in, "{looked_at:?} {asked_at:?} {now}");
        }
    }

    #[test]
    fn a_failed_load_is_not_repeated_at_once() {
        let overview = Overview::default();
        let mut loads = 0;
        let mut refresh = |outcome: Result<&str, &'static str>| {
            overview.refresh(|| {
                loads += 1;
                outcome.map(|json| RawValue::from_string(json.to_owned()).unwrap())
            })
        };
        refresh(Ok("1")).unwrap();
        assert!(overview.look().is_none(), "it is not loaded before it is requested");
        assert_eq!(refresh(Err("locked")), Err("locked"));
        refresh(Ok("2")).unwrap();
        assert_eq!(loads, 1);
        assert!(overview.look().is_none());
    }
}
