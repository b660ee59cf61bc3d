//! How fast a rebuild goes, from several readings.

use std::collections::{BTreeMap, VecDeque};

use super::obstacles::obstacles;
use super::reading::{Reading, float};
use super::record::RebuildRecord;

/// The seconds over which a rate is measured.
const WINDOW: f64 = 60.0;
/// The least number of seconds between two readings that are kept.
const APART: f64 = 1.0;
/// How many rebuilds are remembered. Those that have ended are not known here.
const MOST: usize = 100;

/// The readings of the last minute, by the number of the rebuild's command. Rates are measured
/// between them.
#[derive(Debug, Default)]
pub(crate) struct Readings(BTreeMap<i64, VecDeque<Moment>>);

/// What changes from one reading to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Moment {
    age: f64,
    /// How many positions were left.
    left: f64,
    events: i64,
}

impl Readings {
    /// Returns what operators see of a rebuild, and remembers the reading for the next time.
    pub(crate) fn record(&mut self, reading: &Reading) -> RebuildRecord {
        let now = Moment::of(reading);
        let seen = self.0.entry(reading.command_id).or_default();
        while seen.front().is_some_and(|first| now.age - first.age > WINDOW) {
            seen.pop_front();
        }
        let record = record(reading, seen.front().copied());
        if seen.back().is_none_or(|last| now.age - last.age >= APART) {
            seen.push_back(now);
        }
        if self.0.len() > MOST {
            self.0.pop_first();
        }
        record
    }
}

impl Moment {
    fn of(reading: &Reading) -> Self {
        let left = (float(reading.newest) - reading.mean_position()).max(0.0);
        Self { age: reading.age_seconds, left, events: reading.events }
    }

    /// When the rebuild began, as if there had been all events already.
    fn begin(reading: &Reading) -> Self {
        Self { age: 0.0, left: float((reading.newest - reading.from).max(0)), events: 0 }
    }
}

/// Returns what operators see of a rebuild. Without an earlier moment, its rate is that since it
/// began.
fn record(reading: &Reading, earlier: Option<Moment>) -> RebuildRecord {
    let now = Moment::of(reading);
    let earlier = earlier.filter(|earlier| now.age - earlier.age >= APART).unwrap_or_else(|| Moment::begin(reading));
    let seconds = (now.age - earlier.age).max(0.001);
    let closer = (earlier.left - now.left) / seconds;
    let seconds_to_go = match now.left {
        0.0 => Some(0.0),
        left => (closer > 0.0 && !is_stopped(reading)).then(|| left / closer),
    };
    let whole = float(reading.newest - reading.from);
    // Rounded down, so that it is not complete too early.
    let progress = if whole > 0.0 { ((whole - now.left) / whole).clamp(0.0, 1.0) } else { 1.0 };
    let Reading { state, build_id, error, failing_event, .. } = reading.clone();
    RebuildRecord {
        command_id: reading.command_id,
        state,
        version: reading.version,
        build_id,
        rate_limit: reading.rate_limit,
        keep_old: reading.keep_old,
        copy: reading.copy,
        bytes: reading.bytes,
        age_seconds: reading.age_seconds,
        progress: (progress * 10_000.0).floor() / 10_000.0,
        position: reading.lowest_position(),
        positions_left: whole_number(now.left),
        events: reading.events,
        events_per_second: tenths(float((now.events - earlier.events).max(0)) / seconds),
        seconds_to_go: seconds_to_go.map(tenths),
        workers: reading.workers,
        parked: reading.parked,
        blocked: obstacles(reading),
        error,
        failing_event,
    }
}

/// Whether some of its keys are not handled at all.
fn is_stopped(reading: &Reading) -> bool {
    reading.fault.is_some() || reading.workers == 0 || reading.is_paused || reading.is_halted
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
fn whole_number(number: f64) -> i64 {
    number.ceil() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rebuilding::testing::half_way;

    /// Progress, positions left, events per second and seconds to go.
    fn figures(record: &RebuildRecord) -> (f64, i64, f64, Option<f64>) {
        (record.progress, record.positions_left, record.events_per_second, record.seconds_to_go)
    }

    #[test]
    fn progress_is_weighted_by_the_keys() {
        let parts = |parts: &[(i64, i64)]| Reading { parts: parts.to_vec(), ..half_way() };
        let begun_late = Reading { from: 500, ..parts(&[(65_536, 750)]) };
        let empty = Reading { newest: 0, ..parts(&[(65_536, 0)]) };
        let above = Reading { newest: 400, ..half_way() };
        for (reading, expected) in [
            (half_way(), (0.5, 500, 4.0, Some(100.0))),
            (parts(&[(65_536, 500)]), (0.5, 500, 4.0, Some(100.0))),
            (parts(&[(65_536, 0)]), (0.0, 1_000, 4.0, None)),
            (parts(&[(1, 999), (65_535, 1_000)]), (0.9999, 1, 4.0, Some(0.0))),
            (parts(&[(65_536, 1_000)]), (1.0, 0, 4.0, Some(0.0))),
            (parts(&[]), (0.0, 1_000, 4.0, None)),
            (begun_late, (0.5, 250, 4.0, Some(100.0))),
            (empty, (1.0, 0, 4.0, Some(0.0))),
            (above, (1.0, 0, 4.0, Some(0.0))),
            (Reading { is_halted: true, ..half_way() }, (0.5, 500, 4.0, None)),
            (Reading { workers: 0, ..half_way() }, (0.5, 500, 4.0, None)),
        ] {
            assert_eq!(figures(&record(&reading, None)), expected, "{reading:?}");
        }
        assert_eq!(record(&half_way(), None).position, Some(200));
    }

    #[test]
    fn rates_are_those_of_the_last_minute() {
        let mut readings = Readings::default();
        let at = |age_seconds: f64, position, newest, events| Reading {
            age_seconds,
            newest,
            events,
            parts: vec![(65_536, position)],
            ..half_way()
        };
        let mut seen = |reading| figures(&readings.record(&reading));
        // Since it began.
        assert_eq!(seen(at(100.0, 100, 1_000, 100)), (0.1, 900, 1.0, Some(900.0)));
        // Too soon after that.
        assert_eq!(seen(at(100.5, 200, 1_000, 201)), (0.2, 800, 2.0, Some(402.0)));
        assert_eq!(seen(at(110.0, 200, 1_000, 200)), (0.2, 800, 10.0, Some(80.0)));
        // Newer events come as fast as the rebuild goes.
        assert_eq!(seen(at(120.0, 300, 1_200, 300)), (0.25, 900, 10.0, None));
        // The first two readings are too old.
        assert_eq!(seen(at(175.0, 300, 1_200, 355)), (0.25, 900, 1.0, None));
        // Its count has begun again.
        assert_eq!(seen(at(176.0, 300, 1_200, 0)), (0.25, 900, 0.0, None));
        // Nobody has looked for more than a minute.
        assert_eq!(seen(at(240.0, 300, 1_200, 240)), (0.25, 900, 1.0, Some(720.0)));
    }

    #[test]
    fn readings_of_ended_rebuilds_are_forgotten() {
        let mut readings = Readings::default();
        for command_id in 0..1_000 {
            readings.record(&Reading { command_id, ..half_way() });
        }
        for second in 0..1_000 {
            readings.record(&Reading { command_id: 1_000, age_seconds: f64::from(second) / 10.0, ..half_way() });
        }
        assert_eq!(readings.0.len(), MOST);
        assert!(readings.0[&1_000].len() < 70, "{}", readings.0[&1_000].len());
    }
}
