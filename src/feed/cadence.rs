//! Decides how soon the tailer looks again. Pure.
//!
//! It looks quickly while looks find something, and more and more slowly while they do not. A hint
//! makes it look at once. If every writer gives hints, polling quickly as well would find nothing
//! more, so a look that a hint has caused does not speed up the polling.

use std::time::Duration;

/// The time between two looks while one hint follows another: each look then finds more, and all of
/// them together cost less.
const BETWEEN_HINTS: Duration = Duration::from_millis(5);

/// How long to wait from the beginning of one look to the beginning of the next, so that the
/// duration of a look does not delay the events.
#[derive(Debug)]
pub(super) struct Cadence {
    quickest: Duration,
    slowest: Duration,
    interval: Duration,
    /// Whether a hint has caused the current look.
    is_hinted: bool,
}

impl Cadence {
    pub(super) fn new((quickest, slowest): (Duration, Duration)) -> Self {
        Self { quickest, slowest, interval: quickest, is_hinted: false }
    }

    /// Takes whether a look has moved the head, and whether a writer blocks the head. Returns the
    /// wait until the next look if no hint comes.
    pub(super) fn after_look(&mut self, has_moved: bool, is_held_back: bool) -> Duration {
        let more_may_come = if self.is_hinted { is_held_back } else { has_moved };
        if more_may_come {
            self.interval = self.quickest;
        }
        self.interval
    }

    /// Takes note of a hint. Returns the shorter wait until the next look.
    pub(super) fn hinted(&mut self) -> Duration {
        self.is_hinted = true;
        self.quickest.min(BETWEEN_HINTS)
    }

    /// Takes note that the wait has passed without a hint.
    pub(super) fn waited(&mut self) {
        self.is_hinted = false;
        self.interval = (self.interval * 2).min(self.slowest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ends the wait after a look.
    #[derive(Debug)]
    enum End {
        Hint(u64),
        Time,
    }
    use End::{Hint, Time};

    #[test]
    fn polls_slow_down_until_one_finds_events_and_hints_do_not() {
        let mut cadence = Cadence::new((Duration::from_millis(20), Duration::from_millis(250)));
        // Whether the look moves the head, whether it is held back, the wait in milliseconds, its
        // end.
        for (step, (moves, is_held_back, wait, end)) in [
            (false, false, 20, Time),
            (false, false, 40, Time),
            (false, false, 80, Time),
            (true, false, 20, Time),
            (false, false, 40, Time),
            (false, true, 80, Time),
            (false, false, 160, Time),
            (false, false, 250, Time),
            (false, false, 250, Hint(5)),
            // The hint covered all events.
            (true, false, 250, Hint(5)),
            (true, false, 250, Time),
            (false, false, 250, Hint(5)),
            // No hint tells when the writer that blocks the head ends.
            (true, true, 20, Time),
            (false, true, 40, Time),
            (true, true, 20, Hint(5)),
            (false, false, 20, Time),
            (false, false, 40, Time),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(cadence.after_look(moves, is_held_back), Duration::from_millis(wait), "step {step}");
            match end {
                Hint(wait) => assert_eq!(cadence.hinted(), Duration::from_millis(wait), "step {step}"),
                Time => cadence.waited(),
            }
        }
    }

    #[test]
    fn hints_are_followed_at_least_as_quickly_as_polls() {
        let mut cadence = Cadence::new((Duration::from_millis(1), Duration::from_millis(250)));
        assert_eq!(cadence.hinted(), Duration::from_millis(1));
    }
}
