//! When to look again whether a command is applied, and when to give up. Pure.

use std::time::Duration;

use crate::store::operations::Workers;

const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(500);

/// How long no worker may be connected before the waiting ends: as long as a worker has to
/// reconnect before the others consider it dead, by default.
const WITHOUT_WORKER: Duration = Duration::from_secs(1);

/// How often the workers are counted.
const COUNT_EVERY: Duration = Duration::from_millis(250);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    LookAfter(Duration),
    /// No worker will apply the command.
    NoWorker,
    TimedOut,
}

/// What a wait for one command has observed. All times count from its begin.
#[derive(Debug)]
pub(super) struct Patience {
    timeout: Duration,
    looks: u32,
    counted_at: Option<Duration>,
    /// Since when no worker was connected.
    alone_since: Option<Duration>,
    is_hopeless: bool,
}

impl Patience {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, looks: 0, counted_at: None, alone_since: None, is_hopeless: false }
    }

    /// Whether the workers are to be counted.
    pub(super) fn counts(&self, now: Duration) -> bool {
        self.counted_at.is_none_or(|at| now.saturating_sub(at) >= COUNT_EVERY)
    }

    pub(super) fn counted(&mut self, now: Duration, workers: Workers) {
        self.counted_at = Some(now);
        if workers.connected > 0 {
            self.alone_since = None;
        } else {
            let since = *self.alone_since.get_or_insert(now);
            self.is_hopeless = workers.registered == 0 || now.saturating_sub(since) >= WITHOUT_WORKER;
        }
    }

    /// What to do after a look that has found no outcome.
    pub(super) fn next(&mut self, now: Duration) -> Next {
        if self.alone_since.is_some() && self.is_hopeless {
            return Next::NoWorker;
        }
        let left = self.timeout.saturating_sub(now);
        if left.is_zero() {
            return Next::TimedOut;
        }
        let delay = FIRST.saturating_mul(1 << self.looks.min(10)).min(LONGEST);
        self.looks += 1;
        Next::LookAfter(delay.min(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const CONNECTED: Workers = Workers { registered: 2, connected: 1 };
    const LOST: Workers = Workers { registered: 2, connected: 0 };
    const NONE: Workers = Workers { registered: 0, connected: 0 };

    #[test]
    fn looks_become_rarer_until_the_time_is_over() {
        let mut patience = Patience::new(ms(2_000));
        let mut now = Duration::ZERO;
        let mut delays = Vec::new();
        while let Next::LookAfter(delay) = patience.next(now) {
            delays.push(delay);
            now += delay;
        }
        assert_eq!(delays, [5, 10, 20, 40, 80, 160, 320, 500, 500, 365].map(ms));
        assert_eq!((now, patience.next(now)), (ms(2_000), Next::TimedOut));
        assert_eq!(Patience::new(Duration::ZERO).next(Duration::ZERO), Next::TimedOut);
    }

    #[test]
    fn waiting_ends_at_once_if_there_is_no_worker() {
        let mut patience = Patience::new(ms(60_000));
        assert!(patience.counts(ms(0)));
        patience.counted(ms(0), NONE);
        assert_eq!(patience.next(ms(0)), Next::NoWorker);
    }

    #[test]
    fn a_worker_has_a_moment_to_reconnect() {
        let mut patience = Patience::new(ms(60_000));
        for (now, workers, gives_up) in [
            (0, LOST, false),
            (900, LOST, false),
            (950, CONNECTED, false),
            (1_300, LOST, false),
            (2_299, LOST, false),
            (2_300, LOST, true),
            (2_400, CONNECTED, false),
        ] {
            patience.counted(ms(now), workers);
            assert_eq!(patience.next(ms(now)) == Next::NoWorker, gives_up, "{now}");
        }
        assert!(!patience.counts(ms(2_649)) && patience.counts(ms(2_650)));
    }
}
