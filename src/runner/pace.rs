//! How fast a runner works, if it has a limit. Pure.

use std::time::{Duration, Instant};

use crate::plan::{KEY_SPACE, KeySet};

/// How much of the rate is handled at once.
const PORTION: f64 = 0.1;

/// The limit of a rate, in events per second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    rate: f64,
    /// When the next events may be handled.
    due: Instant,
}

impl Pace {
    /// The part of a rate that belongs to a runner with these keys.
    pub(super) fn of(rate: u32, keys: &KeySet, now: Instant) -> Self {
        let part = f64::from(keys.len()) / f64::from(KEY_SPACE);
        Self { rate: f64::from(rate) * part, due: now }
    }

    /// How long to wait before the next events.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// How many events may be handled in one transaction.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 1 and a rate")]
    pub(super) fn most(&self) -> usize {
        (self.rate * PORTION).max(1.0) as usize
    }

    /// Takes note that this many events have been handled since the last wait.
    pub(super) fn handled(&mut self, events: usize, now: Instant) {
        let events = f64::from(u32::try_from(events).unwrap_or(u32::MAX));
        // A runner that was slower than its rate does not make up for it.
        let from =
            now.checked_sub(Duration::from_secs_f64(PORTION)).map_or(self.due, |recently| self.due.max(recently));
        self.due =
            from + Duration::from_secs_f64(events / self.rate.max(f64::MIN_POSITIVE)).min(Duration::from_secs(60));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_keeps_its_part_of_the_rate() {
        let begun = Instant::now();
        let mut pace = Pace::of(1_000, &KeySet::partition(0, 4), begun);
        assert_eq!((pace.most(), pace.wait(begun)), (25, Duration::ZERO));
        let (mut now, mut handled) = (begun, 0);
        while handled < 2_500 {
            now += pace.wait(now) + Duration::from_millis(3);
            pace.handled(25, now);
            handled += 25;
        }
        let seconds = (now - begun).as_secs_f64();
        assert!((9.5..=10.5).contains(&seconds), "{seconds}");
    }

    #[test]
    fn what_was_not_used_is_not_made_up_for() {
        let begun = Instant::now();
        let mut pace = Pace::of(1_000, &KeySet::all(), begun);
        let late = begun + Duration::from_secs(60);
        pace.handled(100, late);
        pace.handled(100, late);
        assert_eq!(pace.wait(late), Duration::from_millis(100));
    }

    #[test]
    fn a_low_rate_is_one_event_at_a_time() {
        let begun = Instant::now();
        let mut pace = Pace::of(1, &KeySet::partition(0, 100), begun);
        assert_eq!(pace.most(), 1);
        pace.handled(1, begun);
        assert!(pace.wait(begun) > Duration::from_secs(50));
    }
}
