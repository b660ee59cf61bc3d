//! The watch: the thread that reports whether the worker is ready, in the log and in the metrics.
//!
//! It never queries the database. So it also detects a server that does not answer, when no other
//! thread gets an error that it could report. No processing depends on it.

use std::mem::{Discriminant, discriminant};
use std::time::{Duration, Instant};

use crate::backoff::Mentions;
use crate::context::Context;
use crate::error::field;
use crate::health::NotReady;
use crate::measure::Lags;
use crate::metrics::WorkerMetrics;

/// How often it checks.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) context: Context,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) lags: Lags,
    /// The longest time between two checks, within which the worker may become unready.
    pub(crate) at_least_every: Duration,
}

impl Watch {
    /// Runs until the worker is asked to stop.
    pub(crate) fn run(self) {
        let mut spell = Spell::default();
        let every = EVERY.min(self.at_least_every);
        loop {
            let board = &self.context.board;
            // Read only once, so that the last report is that the worker stops.
            let is_stopping = self.context.stop.is_raised();
            let readiness = board.readiness(is_stopping);
            self.metrics.ready.set(i64::from(readiness.is_ok()));
            self.metrics.set_not_ready(readiness.as_ref().err().map(NotReady::label));
            self.metrics.database_up.set(i64::from(board.is_database_reachable()));
            self.lags.drop_outdated();
            self.say(&mut spell, readiness.err());
            if is_stopping {
                return;
            }
            self.context.stop.wait(every);
        }
    }

    fn say(&self, spell: &mut Spell, reason: Option<NotReady>) {
        let (replica_set, worker) = (self.context.replica_set(), self.context.worker());
        match spell.see(reason, Instant::now()) {
            Some(News::NotReady(reason)) => {
                log::warn!(
                    "not ready: replica_set={replica_set} worker={worker} reason={}",
                    field(&reason.to_string()),
                    replica_set = field(&replica_set)
                );
            }
            Some(News::ReadyAgain(after)) => {
                log::info!(
                    "ready again: replica_set={replica_set} worker={worker} after={after:?}",
                    replica_set = field(&replica_set)
                );
            }
            None => {}
        }
    }
}

/// A time in which the worker is not ready, and what of it was logged.
#[derive(Debug, Default)]
struct Spell {
    since: Option<Instant>,
    /// The kind of reason that was last logged.
    logged: Option<Discriminant<NotReady>>,
    mentions: Mentions,
}

/// What is to be logged.
#[derive(Debug, PartialEq, Eq)]
enum News {
    NotReady(NotReady),
    /// Holds how long the worker was not ready.
    ReadyAgain(Duration),
}

impl Spell {
    /// Records why the worker is not ready now, if it is not. Returns what is to be logged.
    fn see(&mut self, reason: Option<NotReady>, now: Instant) -> Option<News> {
        let Some(reason) = reason else {
            let since = self.since.take()?;
            return self.logged.take().map(|_| News::ReadyAgain(now.saturating_duration_since(since)));
        };
        if reason.is_in_order() {
            return None;
        }
        self.since.get_or_insert(now);
        let kind = discriminant(&reason);
        if self.logged == Some(kind) || !self.mentions.is_due() {
            return None;
        }
        self.logged = Some(kind);
        Some(News::NotReady(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halted() -> NotReady {
        NotReady::Halted { projections: "orders".into() }
    }

    #[test]
    fn a_spell_is_logged_once_and_so_is_its_end() {
        let (mut spell, begun) = (Spell::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(spell.see(None, begun), None);
        assert_eq!(spell.see(Some(halted()), after(1)), Some(News::NotReady(halted())));
        assert_eq!(spell.see(Some(halted()), after(2)), None);
        assert_eq!(spell.see(Some(NotReady::Evicted), after(2)), None, "two lines within 30 s would be too many");
        assert_eq!(spell.see(None, after(3)), Some(News::ReadyAgain(Duration::from_secs(2))));
        assert_eq!(spell.see(None, after(4)), None);
        // It begins again, within 30 s.
        assert_eq!(spell.see(Some(halted()), after(5)), None);
        assert_eq!(spell.see(None, after(6)), None, "what was not logged does not end in the log");
        spell.see(Some(halted()), after(7));
        spell.mentions = Mentions::default();
        assert_eq!(spell.see(Some(halted()), after(8)), Some(News::NotReady(halted())), "it lasts");
        spell.mentions = Mentions::default();
        assert_eq!(spell.see(Some(halted()), after(9)), None);
        let evicted = spell.see(Some(NotReady::Evicted), after(9));
        assert_eq!(evicted, Some(News::NotReady(NotReady::Evicted)), "there is another reason");
    }

    #[test]
    fn what_every_start_and_stop_comes_through_is_not_logged() {
        let mut spell = Spell::default();
        for reason in [NotReady::NotRegistered, NotReady::Stopping] {
            assert_eq!(spell.see(Some(reason), Instant::now()), None);
            assert_eq!(spell.see(None, Instant::now()), None);
        }
    }
}
