//! Opens all connections of a pool, step by step.
//!
//! A worker without all its connections takes no partition. While it waits for the rest, another
//! worker may lack exactly the connections that it has got, so it does not keep them for long. The
//! time to open a connection depends on the network, so the limit is for each connection and not
//! for all of them.

use std::time::{Duration, Instant};

use super::pool::Pool;
use crate::error::Error;

/// The longest time between two connections: several round trips on a very slow network.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a step lasts. Between two steps, the caller does its other work.
const STEP: Duration = Duration::from_millis(250);

/// The progress of filling a pool.
pub(crate) struct Filling {
    begun: Instant,
    /// When the number of open connections last reached a new maximum.
    grown: Instant,
    most: u32,
}

impl Filling {
    /// Begins to open the connections, without waiting for them.
    pub(crate) fn begin(pool: &Pool) -> Self {
        let filling = Self::at(Instant::now());
        // The error only says which connections are missing so far.
        _ = pool.open_all(filling.begun, Duration::ZERO);
        filling
    }

    fn at(now: Instant) -> Self {
        Self { begun: now, grown: now, most: 0 }
    }

    /// Waits for a short time until all connections are open. The error says what is missing so
    /// far.
    pub(crate) fn step(&mut self, pool: &Pool) -> Result<(), Error> {
        let outcome = pool.open_all(self.begun, STEP);
        self.note(pool.open(), Instant::now());
        outcome
    }

    /// Whether no further connection was opened for so long that the open ones should be
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
        // One connection is opened in each nine tenths of the patience.
        for open in 1..=20 {
            let now = at(0.9 * f64::from(open));
            assert!(!filling.is_stuck_at(now), "{open}");
            filling.note(open, now);
        }
        // The pool loses one connection, gets it back, and gets no other.
        filling.note(19, at(18.1));
        filling.note(20, at(18.9));
        assert!(!filling.is_stuck_at(at(18.9)));
        assert!(filling.is_stuck_at(at(19.1)));
    }
}
