//! Opens all connections of a pool, step by step.
//!
//! A worker without all its connections takes no partition. While it waits for the rest, those it
//! has got may be just what another worker lacks: so it does not keep them for long. How long one
//! connection takes depends on the network, so the patience is for each and not for all of them.

use std::time::{Duration, Instant};

use super::pool::Pool;
use crate::error::Error;

/// The longest time between two connections: several round trips on a very slow network.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a step lasts. Between two of them the caller does what else there is to do.
const STEP: Duration = Duration::from_millis(250);

/// How far a pool has got.
pub(crate) struct Filling {
    begun: Instant,
    /// When one more connection was last open than ever before.
    grown: Instant,
    most: u32,
}

impl Filling {
    /// Begins to open the connections, and waits for none.
    pub(crate) fn begin(pool: &Pool) -> Self {
        let filling = Self::at(Instant::now());
        // What is missing so far is of no interest yet.
        _ = pool.open_all(filling.begun, Duration::ZERO);
        filling
    }

    fn at(now: Instant) -> Self {
        Self { begun: now, grown: now, most: 0 }
    }

    /// Waits until all connections are open, for a short time only. The error says what is missing
    /// so far.
    pub(crate) fn step(&mut self, pool: &Pool) -> Result<(), Error> {
        let outcome = pool.open_all(self.begun, STEP);
        self.note(pool.open(), Instant::now());
        outcome
    }

    /// Whether no further connection has come for so long that those that are there are better
    /// [closed](Pool::close_idle).
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck_at(Instant::now())
    }

    fn is_stuck_at(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.grown) > PATIENCE
    }

    fn note(&mut self, open: u32, now: Instant) {
        if open > self.most {
            (self.most, self.grown) = (open, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_for_each_connection() {
        let mut filling = Filling::at(Instant::now());
        let begun = filling.begun;
        let at = |seconds: f64| begun + PATIENCE.mul_f64(seconds);
        // One connection for each nine tenths of the patience.
        for open in 1..=20 {
            let now = at(0.9 * f64::from(open));
            assert!(!filling.is_stuck_at(now), "{open}");
            filling.note(open, now);
        }
        // It loses one, gets it back, and no other.
        filling.note(19, at(18.1));
        filling.note(20, at(18.9));
        assert!(!filling.is_stuck_at(at(18.9)));
        assert!(filling.is_stuck_at(at(19.1)));
    }
}
