//! Growing delays with jitter, so that many workers that lost the same server do not come back in step.

use std::time::Duration;

/// Delays that double from the first to the longest; each is drawn between half of its value and all of it.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// For connections: quick enough that a worker is back within the session-loss grace of its peers.
    pub(crate) fn for_connections() -> Self {
        Self::new(Duration::from_millis(20), Duration::from_millis(500))
    }

    /// The delay before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(20)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
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
}
