//! Where runners get their events from.
//!
//! One thread per worker, the *tailer*, finds the safe head and reads the newest events once for
//! all projections; a runner near the head takes them from memory. A runner that is far behind
//! reads its own range from the database, ahead of its handler ([`prefetch`]).
//!
//! *Invariants.* No runner is given an event above the safe head (I3). Events that were read on one
//! connection of the tailer are given to no runner that has loaded its checkpoints after that
//! connection was lost: the server may have failed over to one that has fewer events. So every
//! connection of the tailer begins an *epoch*. A runner reloads in a new epoch, and after loading
//! it waits for a look that began later. Only then does [`Feed::standing_of`] return the head.

mod blocked;
mod cadence;
mod head;
pub(crate) mod prefetch;
mod sight;
mod tail;
pub(crate) mod tailer;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crossbeam_channel::Receiver;
use parking_lot::{Mutex, RwLock};

use crate::plan::KeySet;
use crate::scope::Scope;
use crate::store::events::{Batch, Bounds, Range};
use crate::threads::Waker;
use tail::Tail;

/// The safe head and the shared live tail.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// `i64::MIN` until the first look.
    head: AtomicI64,
    tail: RwLock<Tail>,
    followers: Mutex<Vec<(Waker, Arc<AtomicI64>)>>,
    /// How many connections the tailer has opened.
    epoch: AtomicU64,
    /// How many looks the tailer has begun.
    looks: AtomicU64,
    /// The number of the last look whose findings are published.
    published: AtomicU64,
    /// Wakes the tailer to look.
    hint: Waker,
    bounds: Bounds,
}

/// The state of the feed at one moment. A runner takes a mark before it loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    epoch: u64,
    /// How many looks had begun.
    looks: u64,
}

/// What a runner that loaded at a mark may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It may process up to this safe head.
    Current(i64),
    /// It has to wait for a look that began after the mark.
    AwaitLook,
    /// It has to reload: another epoch has begun.
    Stale,
}

/// The number of a look, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look(u64);

/// Connects a runner to the feed. The feed wakes it when the head moves, and reads the tail only if
/// the position of some runner is near the head.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) woken: Receiver<()>,
    position: Arc<AtomicI64>,
}

/// The position of a runner that owns no rows.
const NOWHERE: i64 = i64::MIN;

impl Feed {
    /// Creates the feed, and the receiver on which the tailer is woken.
    pub(crate) fn new(bounds: Bounds) -> (Self, Receiver<()>) {
        let (hint, hints) = Waker::new();
        let shared = Shared {
            head: AtomicI64::new(NOWHERE),
            tail: RwLock::default(),
            followers: Mutex::default(),
            epoch: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            published: AtomicU64::new(0),
            hint,
            bounds,
        };
        (Self { shared: Arc::new(shared) }, hints)
    }

    /// The waker that makes the tailer look.
    pub(crate) fn hint(&self) -> &Waker {
        &self.shared.hint
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { epoch: self.shared.epoch.load(Ordering::Acquire), looks: self.shared.looks.load(Ordering::Acquire) }
    }

    /// Returns the mark of this moment, but in the epoch of an earlier mark: for rows that are
    /// loaded now on a connection that was opened then.
    pub(crate) fn mark_in_epoch_of(&self, earlier: Mark) -> Mark {
        Mark { epoch: earlier.epoch, ..self.mark() }
    }

    /// Returns what a runner that loaded at this mark may do. Wakes the tailer if the runner has to
    /// wait for a look.
    pub(crate) fn standing_of(&self, mark: Mark) -> Standing {
        let has_looked = self.shared.published.load(Ordering::Acquire) > mark.looks;
        let head = self.head().filter(|_| has_looked);
        // The epochs are compared after the head was read: the head of another epoch is published
        // only after that epoch has begun.
        if self.shared.epoch.load(Ordering::Acquire) != mark.epoch {
            return Standing::Stale;
        }
        head.map_or_else(
            || {
                self.shared.hint.wake();
                Standing::AwaitLook
            },
            Standing::Current,
        )
    }

    /// Begins an epoch and forgets the findings of the last one: the tailer has opened another
    /// connection.
    fn begin_epoch(&self) {
        self.shared.head.store(NOWHERE, Ordering::Release);
        self.shared.tail.write().skip_to(NOWHERE);
        self.shared.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Begins a look of the tailer.
    fn begin_look(&self) -> Look {
        Look(self.shared.looks.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Ends a look whose findings have been published.
    fn end_look(&self, Look(number): Look) {
        self.shared.published.store(number, Ordering::Release);
    }

    pub(crate) fn follow(&self) -> Follower {
        let (waker, woken) = Waker::new();
        let position = Arc::new(AtomicI64::new(NOWHERE));
        self.shared.followers.lock().push((waker, position.clone()));
        Follower { woken, position }
    }

    /// The safe head; `None` before the first look.
    fn head(&self) -> Option<i64> {
        Some(self.shared.head.load(Ordering::Acquire)).filter(|head| *head != NOWHERE)
    }

    /// Takes the keys that this worker owns from now on, and empties the tail even if they are the
    /// same: an event at which a projection has halted may have been repaired, and must be read in
    /// its current form.
    pub(crate) fn assign(&self, keys: KeySet) {
        self.shared.tail.write().restart(keys, self.head().unwrap_or(NOWHERE));
    }

    /// Reads the first events of a range from memory; `None` if the tail does not reach back that
    /// far.
    pub(crate) fn read_tail(&self, range: &Range, scope: &Scope, bounds: Bounds) -> Option<Batch> {
        self.shared.tail.read().read(range, scope, bounds)
    }

    /// Returns the range that is to be read into the tail next, up to the head. Skips those events
    /// if no runner is near enough to need them.
    fn unread_tail(&self, head: i64) -> Option<Range> {
        let (keys, after) = {
            let tail = self.shared.tail.read();
            (tail.keys().clone(), tail.end())
        };
        if after >= head {
            return None;
        }
        if keys.is_empty() || head.saturating_sub(after) > self.reach() || !self.is_any_runner_near(head) {
            self.skip_tail(head);
            return None;
        }
        Some(Range { keys, after, upto: head })
    }

    /// Adds the events that were read for a range of [`unread_tail`](Self::unread_tail).
    fn extend_tail(&self, range: &Range, batch: Batch) {
        self.shared.tail.write().extend(&range.keys, range.after, batch, self.shared.bounds);
    }

    fn skip_tail(&self, to: i64) {
        self.shared.tail.write().skip_to(to);
    }

    /// How many positions a runner may be behind the head so that the tail is read for it.
    fn reach(&self) -> i64 {
        i64::try_from(self.shared.bounds.events).unwrap_or(i64::MAX).saturating_mul(4)
    }

    fn is_any_runner_near(&self, head: i64) -> bool {
        let near = head.saturating_sub(self.reach());
        self.shared.followers.lock().iter().any(|(_, position)| position.load(Ordering::Relaxed) >= near)
    }

    fn publish(&self, head: i64) {
        self.shared.head.store(head, Ordering::Release);
        for (runner, _) in self.shared.followers.lock().iter() {
            runner.wake();
        }
    }
}

impl Follower {
    pub(crate) fn set_position(&self, position: i64) {
        self.position.store(position, Ordering::Relaxed);
    }

    pub(crate) fn set_nowhere(&self) {
        self.set_position(NOWHERE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed() -> (Feed, Receiver<()>) {
        Feed::new(Bounds { events: 10, bytes: 1_000, event_bytes: 1_000 })
    }

    /// A look that finds this head.
    fn look(feed: &Feed, head: i64) {
        let look = feed.begin_look();
        feed.publish(head);
        feed.end_look(look);
    }

    #[test]
    fn runner_waits_after_loading_for_a_look_begun_later() {
        let (feed, hints) = feed();
        feed.begin_epoch();
        look(&feed, 7);
        let begun_before = feed.begin_look();
        let mark = feed.mark();
        assert_eq!(feed.standing_of(mark), Standing::AwaitLook, "an earlier look does not count");
        assert!(hints.try_recv().is_ok(), "the tailer is asked to look");
        feed.publish(8);
        feed.end_look(begun_before);
        assert_eq!(feed.standing_of(mark), Standing::AwaitLook, "nor does one that was begun before");
        assert!(hints.try_recv().is_ok());
        look(&feed, 9);
        assert_eq!(feed.standing_of(mark), Standing::Current(9));
        assert!(hints.try_recv().is_err());
    }

    #[test]
    fn runner_that_loaded_in_an_earlier_epoch_reloads() {
        let (feed, _hints) = feed();
        feed.begin_epoch();
        let mark = feed.mark();
        look(&feed, 7);
        feed.begin_epoch();
        assert_eq!(feed.standing_of(mark), Standing::Stale, "before the first look");
        look(&feed, 5);
        assert_eq!(feed.standing_of(mark), Standing::Stale);
        let on_the_former_connection = feed.mark_in_epoch_of(mark);
        look(&feed, 6);
        assert_eq!(feed.standing_of(on_the_former_connection), Standing::Stale);
        let again = feed.mark();
        assert_eq!(feed.standing_of(again), Standing::AwaitLook);
        look(&feed, 6);
        assert_eq!(feed.standing_of(again), Standing::Current(6));
        assert_eq!(feed.standing_of(feed.mark_in_epoch_of(again)), Standing::AwaitLook);
    }

    #[test]
    fn no_look_of_a_former_epoch_counts_in_the_next() {
        let (feed, _hints) = feed();
        feed.begin_epoch();
        // The connection fails in the middle of a look.
        feed.begin_look();
        feed.begin_epoch();
        let mark = feed.mark();
        assert_eq!(feed.standing_of(mark), Standing::AwaitLook);
        look(&feed, 3);
        assert_eq!(feed.standing_of(mark), Standing::Current(3));
    }
}
