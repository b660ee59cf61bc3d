//! How often to retry, to log and to react. Delays grow with jitter, so that many workers that lost
//! the same server do not reconnect at the same time.

use std::time::{Duration, Instant};

/// Delays that double from the first to the longest. The actual delay is random, between half of
/// this value and all of it.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    mentions: Mentions,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0, mentions: Mentions::default() }
    }

    /// Creates the delays for connections: short enough that a worker reconnects within the
    /// session-loss grace that the other workers allow.
    pub(crate) fn for_connections() -> Self {
        Self::new(Duration::from_millis(20), Duration::from_millis(500))
    }

    /// The delay before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(20)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Whether this failure is to be logged: the first of a series, and then one every 30 s.
    pub(crate) fn is_worth_logging(&mut self) -> bool {
        if self.failures == 0 {
            self.mentions = Mentions::default();
        }
        self.mentions.is_due()
    }

    /// Ends the series of failures. Returns whether there was one.
    pub(crate) fn reset(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }
}

/// When a recurring condition was last logged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mentions {
    last: Option<Instant>,
}

impl Mentions {
    /// How often a recurring condition is logged.
    const EVERY: Duration = Duration::from_secs(30);

    /// Whether to log it now: the first time, and then at most every 30 s. Remembers the time if
    /// so.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.last.is_none_or(|at| at.elapsed() >= Self::EVERY);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

/// Limits how often to react to something that other sessions can cause at any rate: a few times at
/// once, and then at a steady rate.
#[derive(Debug, Clone)]
pub(crate) struct Allowance {
    every: Duration,
    at_once: u32,
    /// When the whole allowance is available again.
    full_at: Option<Instant>,
}

impl Allowance {
    pub(crate) fn new(every: Duration, at_once: u32) -> Self {
        Self { every, at_once, full_at: None }
    }

    /// How long to wait before the next reaction.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        let in_advance = self.every.saturating_mul(self.at_once.saturating_sub(1));
        self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now).saturating_sub(in_advance))
    }

    /// Records a reaction.
    pub(crate) fn take(&mut self, now: Instant) {
        self.full_at = Some(self.full_at.map_or(now, |at| at.max(now)) + self.every);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_vary_by_half() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(100));
        for full in [10, 20, 40, 80, 100, 100] {
            let delay = backoff.next_delay();
            assert!(
                delay >= Duration::from_millis(full / 2) && delay <= Duration::from_millis(full),
                "{delay:?} of {full}"
            );
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(10));
        for _ in 0..100 {
            assert!(backoff.next_delay() <= Duration::from_millis(100), "no overflow");
        }
    }

    #[test]
    fn a_few_reactions_are_immediate_and_the_others_spaced() {
        let (every, begun) = (Duration::from_millis(50), Instant::now());
        let mut allowance = Allowance::new(every, 3);
        for _ in 0..3 {
            assert_eq!(allowance.wait(begun), Duration::ZERO);
            allowance.take(begun);
        }
        assert_eq!(allowance.wait(begun), every);
        assert_eq!(allowance.wait(begun + every), Duration::ZERO);
        allowance.take(begun + every);
        assert_eq!(allowance.wait(begun + every), every);
        let rested = begun + Duration::from_secs(60);
        for _ in 0..3 {
            assert_eq!(allowance.wait(rested), Duration::ZERO);
            allowance.take(rested);
        }
        assert_eq!(allowance.wait(rested), every, "a rest allows no more than before");
    }

    #[test]
    fn the_first_failure_is_logged_and_then_one_in_30_seconds() {
        let mut backoff = Backoff::for_connections();
        assert!(backoff.is_worth_logging());
        backoff.next_delay();
        assert!(!backoff.is_worth_logging());
        backoff.mentions.last = backoff.mentions.last.and_then(|at| at.checked_sub(Mentions::EVERY));
        assert!(backoff.is_worth_logging(), "half a minute has passed");
        assert!(!backoff.is_worth_logging());
        backoff.reset();
        assert!(backoff.is_worth_logging(), "another row begins");
    }
}
