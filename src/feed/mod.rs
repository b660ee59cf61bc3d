//! Where runners get their events from.
//!
//! One thread per worker, the *tailer*, finds the safe head and reads the newest events once for all projections; a runner near the head
//! takes them from memory. A runner that is far behind reads its own range from the database, ahead of its handler ([`ahead`]).
//!
//! *Invariants.* Nobody is given an event above the safe head (I3). What was read on one connection of the tailer is given to nobody who
//! has loaded its checkpoints after that connection was lost: the server may have failed over to one that knows less. So every connection
//! of the tailer begins an *epoch*; a runner reloads its checkpoints in a new one, and having loaded them waits for a look begun since.

pub(crate) mod ahead;
mod head;
mod tail;
pub(crate) mod tailer;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::Receiver;
use parking_lot::{Mutex, RwLock};

use crate::plan::KeySet;
use crate::projection::Scope;
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
    epoch: AtomicU64,
    origin: Instant,
    /// When the last look that succeeded was begun, in microseconds after `origin`.
    looked_at: AtomicU64,
    /// Makes the tailer look.
    hint: Waker,
    bounds: Bounds,
}

/// A runner's tie to the feed: it is woken when the head moves, and tells how far it is so that the tail is read only when somebody is
/// near it.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) woken: Receiver<()>,
    position: Arc<AtomicI64>,
}

/// The position of a runner that owns nothing.
const NOWHERE: i64 = i64::MIN;

impl Feed {
    /// The feed, and what makes the tailer look.
    pub(crate) fn new(bounds: Bounds) -> (Self, Receiver<()>) {
        let (hint, hints) = Waker::new();
        let shared = Shared {
            head: AtomicI64::new(NOWHERE),
            tail: RwLock::default(),
            followers: Mutex::default(),
            epoch: AtomicU64::new(0),
            origin: Instant::now(),
            looked_at: AtomicU64::new(0),
            hint,
            bounds,
        };
        (Self { shared: Arc::new(shared) }, hints)
    }

    /// What makes the tailer look.
    pub(crate) fn hint(&self) -> &Waker {
        &self.shared.hint
    }

    /// Changes when the tailer has connected anew.
    pub(crate) fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }

    /// Whether the tailer has looked since then; if not, it is asked to.
    pub(crate) fn has_looked_since(&self, since: Instant) -> bool {
        let looked = self.shared.looked_at.load(Ordering::Acquire) > self.micros(since);
        if !looked {
            self.shared.hint.wake();
        }
        looked
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.shared.origin).as_micros()).unwrap_or(u64::MAX)
    }

    /// The tailer has connected anew: forget what it knew.
    fn begin_epoch(&self) {
        self.shared.head.store(NOWHERE, Ordering::Release);
        self.shared.tail.write().skip_to(NOWHERE);
        self.shared.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// What a look begun at this moment found has been published.
    fn looked(&self, begun: Instant) {
        self.shared.looked_at.store(self.micros(begun), Ordering::Release);
    }

    pub(crate) fn follow(&self) -> Follower {
        let (waker, woken) = Waker::new();
        let position = Arc::new(AtomicI64::new(NOWHERE));
        self.shared.followers.lock().push((waker, position.clone()));
        Follower { woken, position }
    }

    /// The safe head; none before the first look.
    pub(crate) fn head(&self) -> Option<i64> {
        Some(self.shared.head.load(Ordering::Acquire)).filter(|head| *head != NOWHERE)
    }

    /// Says which keys this worker owns from now on. If these are others than before, the tail begins anew.
    pub(crate) fn assign(&self, keys: KeySet) {
        let mut tail = self.shared.tail.write();
        if *tail.keys() != keys {
            tail.restart(keys, self.head().unwrap_or(NOWHERE));
        }
    }

    /// The first events of a range, from memory; `None` if the tail does not reach back that far.
    pub(crate) fn read_tail(&self, range: &Range, scope: &Scope) -> Option<Batch> {
        self.shared.tail.read().read(range, scope, self.shared.bounds)
    }

    /// The tail is worth reading while a runner is at most this many positions behind the head.
    fn reach(&self) -> i64 {
        i64::try_from(self.shared.bounds.events).unwrap_or(i64::MAX).saturating_mul(4)
    }

    fn somebody_is_near(&self, head: i64) -> bool {
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
    pub(crate) fn is_at(&self, position: i64) {
        self.position.store(position, Ordering::Relaxed);
    }

    pub(crate) fn is_nowhere(&self) {
        self.is_at(NOWHERE);
    }
}
