//! The position at which a worker is to stop, if there is one:
//! [`run_to`](crate::Orchestrator::run_to).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crossbeam_channel::Receiver;

use crate::threads::Waker;

/// A position that no worker reaches.
const NOWHERE: i64 = i64::MAX;

/// The goal of a worker, and the waker of the thread that waits for it. Clones share the same goal.
///
/// A runner that crosses the goal writes its position to the database at once, even if it has
/// handled no event: only the checkpoints tell whether the goal is reached.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    position: Arc<AtomicI64>,
    waker: Waker,
}

impl Goal {
    /// Creates a goal that has no position yet, and the receiver that is woken when a runner
    /// crosses it.
    pub(crate) fn nowhere() -> (Self, Receiver<()>) {
        let (waker, woken) = Waker::new();
        (Self { position: Arc::new(AtomicI64::new(NOWHERE)), waker }, woken)
    }

    pub(crate) fn set(&self, position: i64) {
        self.position.store(position, Ordering::Relaxed);
    }

    pub(crate) fn position(&self) -> i64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Whether a runner that has reached this position has to write it to the database at once.
    pub(crate) fn is_crossed(&self, stored: i64, reached: i64) -> bool {
        (stored.saturating_add(1)..=reached).contains(&self.position())
    }

    /// Records that a checkpoint is at this position in the database.
    pub(crate) fn stored(&self, position: i64) {
        if position >= self.position() {
            self.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_step_across_the_goal_is_written_at_once() {
        let (goal, woken) = Goal::nowhere();
        assert!(!goal.is_crossed(0, 1_000));
        goal.set(10);
        for (stored, reached, is_crossed) in
            [(0, 9, false), (0, 10, true), (9, 10, true), (9, 11, true), (10, 11, false), (10, 10, false)]
        {
            assert_eq!(goal.is_crossed(stored, reached), is_crossed, "from {stored} to {reached}");
        }
        goal.stored(9);
        assert!(woken.try_recv().is_err());
        goal.stored(10);
        assert!(woken.try_recv().is_ok());
    }
}
