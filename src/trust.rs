//! How long a worker may believe that it is still a member.
//!
//! The time counts from before the round trip: a heartbeat that was sent at t and answered makes
//! the worker a member until t + `stale_worker_timeout`, by its own monotonic clock. The other
//! workers count from a later moment, on the server's clock. So a worker that is cut off pauses its
//! own runners before another worker declares it dead. The fence holds without trust; trust only
//! avoids work that could not be committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub(crate) struct Trust {
    origin: Instant,
    lasts: Duration,
    /// Milliseconds after `origin`.
    until: Arc<AtomicU64>,
}

impl Trust {
    pub(crate) fn new(lasts: Duration) -> Self {
        Self { origin: Instant::now(), lasts, until: Arc::default() }
    }

    /// Records that a heartbeat sent at `sent` was answered.
    pub(crate) fn renew(&self, sent: Instant) {
        let until = sent.saturating_duration_since(self.origin) + self.lasts;
        self.until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn holds(&self) -> bool {
        !self.left().is_zero()
    }

    /// How long the trust lasts unless it is renewed.
    pub(crate) fn left(&self) -> Duration {
        Duration::from_millis(self.until.load(Ordering::Relaxed)).saturating_sub(self.origin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_lasts_from_when_the_heartbeat_was_sent() {
        let trust = Trust::new(Duration::from_secs(30));
        assert!(!trust.holds(), "none before the first heartbeat");
        trust.renew(Instant::now());
        assert!(trust.holds());
        let Some(long_ago) = Instant::now().checked_sub(Duration::from_secs(31)) else { return };
        let early = Trust { origin: long_ago, ..Trust::new(Duration::from_secs(30)) };
        early.renew(long_ago);
        assert!(!early.holds());
    }
}
