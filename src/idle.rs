//! Keeps a silent connection open through a proxy that closes idle connections.
//!
//! Such a proxy does not tell its timeout, so the library learns it: when a connection was lost
//! after a silence, the next connection sends something after half of that time.

use std::time::{Duration, Instant};

/// A connection that is lost after a shorter silence was not lost because of it.
const SHORTEST_SILENCE: Duration = Duration::from_secs(1);

/// Decides when to send something on a silent connection. Serves one connection after another.
#[derive(Debug, Default)]
pub(crate) struct IdleProbe {
    /// The longest silence to allow; `None` while no limit is known.
    every: Option<Duration>,
    /// When something was last sent or received on the current connection.
    used: Option<Instant>,
}

impl IdleProbe {
    /// Records that something was sent or received.
    pub(crate) fn used(&mut self, now: Instant) {
        self.used = Some(now);
    }

    /// Whether to send something now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.every.zip(self.used).is_some_and(|(every, used)| now.saturating_duration_since(used) >= every)
    }

    /// Records that the connection is lost, or that none was opened.
    pub(crate) fn lost(&mut self, now: Instant) {
        let Some(used) = self.used.take() else { return };
        let silence = now.saturating_duration_since(used);
        if silence >= SHORTEST_SILENCE {
            let half = silence / 2;
            self.every = Some(self.every.map_or(half, |every| every.min(half)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_after_a_silence_makes_the_next_connection_speak() {
        let seconds = Duration::from_secs_f64;
        let begun = Instant::now();
        let mut probe = IdleProbe::default();
        probe.used(begun);
        assert!(!probe.is_due(begun + seconds(3600.0)), "silence is not known to be limited");
        probe.lost(begun + seconds(3.0));
        assert!(!probe.is_due(begun + seconds(9.0)), "there is no connection");
        probe.used(begun);
        assert!(!probe.is_due(begun + seconds(1.4)));
        assert!(probe.is_due(begun + seconds(1.5)));
        probe.used(begun + seconds(1.5));
        assert!(!probe.is_due(begun + seconds(2.0)));
        // A loss after a longer silence changes nothing; one after a shorter silence lowers the
        // limit.
        probe.lost(begun + seconds(9.0));
        probe.used(begun);
        assert!(probe.is_due(begun + seconds(1.5)));
        probe.lost(begun + seconds(1.2));
        probe.used(begun);
        assert!(probe.is_due(begun + seconds(0.6)) && !probe.is_due(begun + seconds(0.5)));
    }

    #[test]
    fn a_loss_without_a_silence_teaches_nothing() {
        let begun = Instant::now();
        let mut probe = IdleProbe::default();
        // The first loss is of a connection that was never opened, the second of one that was in
        // use.
        probe.lost(begun + Duration::from_secs(5));
        probe.used(begun);
        probe.lost(begun + Duration::from_millis(900));
        probe.used(begun);
        assert!(!probe.is_due(begun + Duration::from_secs(3600)));
    }
}
