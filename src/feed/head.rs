//! The safe head: the position up to which every event that will ever exist is visible. Pure.
//!
//! Positions are handed out before the transactions that use them commit, so a lower one can become
//! visible after a higher one. A reader must not step over such a hole while its transaction is
//! open (I3), and must not wait for one that was rolled back.
//!
//! Two rules move the head; no timer moves it:
//!
//! - **Contiguity.** If the positions right above the head are all visible, nothing below them can
//!   be in flight.
//! - **Grace period**, as in read-copy-update. A writer holds a ROW EXCLUSIVE lock on the
//!   table before its position is handed out, and releases it after its rows are visible. So:
//!   note the newest visible position, *then* list the holders of that lock; once exactly those
//!   have finished, everything that will ever exist at or below the noted position is visible.
//!
//! The second rule relies on positions that are handed out in order. An event may have a position
//! that the sequence has not handed out, so lower positions may still be handed out later. If the
//! last position that was handed out is known, the head does not move beyond it.

use std::collections::BTreeSet;

use crate::store::safe_head::{Holder, Probe};

/// The safe head and the current grace period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    safe: i64,
    grace: Option<Grace>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Grace {
    /// Where the head moves when the period ends.
    bound: i64,
    /// The writers that were active when it began and have not finished. Never empty.
    holders: BTreeSet<Holder>,
}

impl Head {
    /// Begins at a position that is known to be settled.
    pub(crate) fn new(settled: i64) -> Self {
        Self { safe: settled, grace: None }
    }

    pub(crate) fn safe(&self) -> i64 {
        self.safe
    }

    /// Takes what a look found above the head. Returns whether there is a hole, so that the holders
    /// have to be listed next.
    #[must_use]
    pub(crate) fn observe(&mut self, probe: Probe) -> bool {
        self.advance(probe.contiguous);
        reachable(probe) > self.safe
    }

    /// Takes the holders that were listed after `probe` was made.
    pub(crate) fn settle(&mut self, probe: Probe, holders: Vec<Holder>) {
        let holders: BTreeSet<Holder> = holders.into_iter().collect();
        if let Some(grace) = &mut self.grace {
            // Only the transactions are compared: a prepared transaction continues without its
            // backend, and so without a pid.
            grace.holders = holders
                .iter()
                .filter(|holder| grace.holders.iter().any(|former| former.transaction == holder.transaction))
                .cloned()
                .collect();
            if grace.holders.is_empty() {
                let bound = grace.bound;
                self.advance(bound);
            }
        }
        let bound = reachable(probe);
        if self.grace.is_none() && bound > self.safe {
            if holders.is_empty() {
                self.advance(bound);
            } else {
                self.grace = Some(Grace { bound, holders });
            }
        }
    }

    /// Whether a writer may have an event in flight below the newest visible position.
    pub(crate) fn is_held_back(&self) -> bool {
        self.grace.is_some()
    }

    /// The writers that block the head.
    pub(crate) fn blockers(&self) -> Vec<Holder> {
        self.grace.iter().flat_map(|grace| grace.holders.iter().cloned()).collect()
    }

    fn advance(&mut self, to: i64) {
        self.safe = self.safe.max(to);
        if self.grace.as_ref().is_some_and(|grace| grace.holders.is_empty() || grace.bound <= self.safe) {
            self.grace = None;
        }
    }
}

/// How far a grace period that began with this look may move the head.
fn reachable(probe: Probe) -> i64 {
    probe.last.map_or(probe.newest, |last| probe.newest.min(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(pid: i32) -> Holder {
        Holder { transaction: format!("{pid}/1"), pid: Some(pid) }
    }

    fn probe(newest: i64, contiguous: i64) -> Probe {
        Probe { newest, contiguous, last: None, here: None, there: None }
    }

    #[test]
    fn no_hole_is_passed_below_a_position_that_was_not_handed_out() {
        let handed_out = |last, newest, contiguous| Probe { last: Some(last), ..probe(newest, contiguous) };
        let mut head = Head::new(10);
        assert!(head.observe(handed_out(14, i64::MAX, 12)));
        head.settle(handed_out(14, i64::MAX, 12), vec![]);
        assert_eq!(head.safe(), 14);
        assert!(!head.observe(handed_out(14, i64::MAX, 14)), "there is nothing up to there that is yet to come");
        assert!(!head.observe(handed_out(15, i64::MAX, 15)));
        assert_eq!(head.safe(), 15);
        // The sequence was set back: positions that are visible without a hole are still accepted.
        assert!(!head.observe(handed_out(3, 20, 17)));
        assert_eq!(head.safe(), 17);
    }

    #[test]
    fn contiguous_positions_need_no_lock() {
        let mut head = Head::new(10);
        assert!(!head.observe(probe(15, 15)));
        assert_eq!(head.safe(), 15);
        assert!(!head.observe(probe(15, 15)), "nothing new");
    }

    #[test]
    fn a_hole_without_writers_is_passed_at_once() {
        let mut head = Head::new(10);
        assert!(head.observe(probe(15, 12)));
        assert_eq!(head.safe(), 12);
        head.settle(probe(15, 12), vec![]);
        assert_eq!(head.safe(), 15);
    }

    #[test]
    fn a_hole_is_not_stepped_over_while_its_writers_are_open() {
        let mut head = Head::new(0);
        let hole = probe(5, 2);
        assert!(head.observe(hole));
        head.settle(hole, vec![holder(1), holder(2)]);
        assert_eq!((head.safe(), head.blockers().len()), (2, 2));
        // Another writer begins, and one of the first two ends.
        assert!(head.observe(probe(9, 2)));
        head.settle(probe(9, 2), vec![holder(2), holder(3)]);
        assert_eq!((head.safe(), head.blockers()), (2, vec![holder(2)]));
        // The last of the first two ends: the head moves to its bound, and the next period begins.
        assert!(head.observe(probe(9, 2)));
        head.settle(probe(9, 2), vec![holder(3)]);
        assert_eq!((head.safe(), head.blockers()), (5, vec![holder(3)]));
        head.settle(probe(9, 5), vec![]);
        assert_eq!((head.safe(), head.blockers()), (9, vec![]));
    }

    #[test]
    fn a_hole_that_fills_ends_the_grace_period() {
        let mut head = Head::new(0);
        assert!(head.observe(probe(5, 2)));
        head.settle(probe(5, 2), vec![holder(1)]);
        assert!(!head.observe(probe(5, 5)));
        assert_eq!((head.safe(), head.blockers()), (5, vec![]));
    }

    #[test]
    fn a_prepared_transaction_keeps_blocking() {
        let mut head = Head::new(0);
        assert!(head.observe(probe(5, 2)));
        head.settle(probe(5, 2), vec![holder(1)]);
        let prepared = Holder { pid: None, ..holder(1) };
        head.settle(probe(5, 2), vec![prepared.clone()]);
        assert_eq!((head.safe(), head.blockers()), (2, vec![prepared]));
        head.settle(probe(5, 2), vec![]);
        assert_eq!(head.safe(), 5);
    }

    #[test]
    fn a_backend_that_begins_another_transaction_is_another_holder() {
        let mut head = Head::new(0);
        assert!(head.observe(probe(5, 2)));
        head.settle(probe(5, 2), vec![Holder { transaction: "1/7".into(), pid: Some(1) }]);
        head.settle(probe(5, 2), vec![Holder { transaction: "1/8".into(), pid: Some(1) }]);
        assert_eq!((head.safe(), head.blockers()), (5, vec![]), "nothing lies above for it to hold back");
    }
}
