//! The checkpoints of a runner, lowest position first. Pure.
//!
//! *Invariant:* only the first is advanced, up to the next one's position (I2). When the two meet
//! they are merged.

use std::collections::VecDeque;

use crate::plan::KeySet;
use crate::store::events::Range;
use crate::store::fence::{Attempt, Checkpoint};

/// A checkpoint that is being advanced.
#[derive(Debug)]
pub(super) struct Row {
    /// The checkpoint in the database.
    pub(super) stored: Checkpoint,
    /// No event of the projection lies between the stored position and this one.
    pub(super) reached: i64,
}

impl Row {
    /// Whether it has advanced beyond its position in the database.
    pub(super) fn is_ahead(&self) -> bool {
        self.reached > self.stored.position
    }
}

#[derive(Debug)]
pub(super) struct Rows(VecDeque<Row>);

impl Rows {
    pub(super) fn new(mut stored: Vec<Checkpoint>) -> Self {
        stored.sort_by_key(|checkpoint| (checkpoint.position, checkpoint.token));
        Self(stored.into_iter().map(|stored| Row { reached: stored.position, stored }).collect())
    }

    /// The checkpoint to advance.
    pub(super) fn first(&self) -> Option<&Row> {
        self.0.front()
    }

    /// The range over which the first may be advanced, if it is below the head. It ends where
    /// events begin that were never handled, so that a handler can be told which kind its events
    /// are.
    pub(super) fn range(&self, head: i64) -> Option<Range> {
        let first = self.first()?;
        let upto = self.0.get(1).map_or(head, |next| next.reached.min(head));
        let upto = if first.reached < first.stored.highest { upto.min(first.stored.highest) } else { upto };
        (first.reached < upto).then(|| Range { keys: first.stored.keys.clone(), after: first.reached, upto })
    }

    /// The first two, if they are at one position.
    pub(super) fn met(&self) -> Option<(&Row, &Row)> {
        let (first, next) = (self.0.front()?, self.0.get(1)?);
        (first.reached == next.reached).then_some((first, next))
    }

    /// Merges the first two, which the database has merged already.
    pub(super) fn merge(&mut self) {
        if let Some(merged) = self.0.pop_front()
            && let Some(first) = self.0.front_mut()
        {
            let (kept, gone) = (&mut first.stored, merged.stored);
            kept.keys = kept.keys.union(&gone.keys);
            kept.highest = kept.highest.max(gone.highest);
            let number = |attempt: Option<Attempt>| attempt.map_or(0, |attempt| attempt.number);
            if number(gone.attempt) > number(kept.attempt) {
                kept.attempt = gone.attempt;
            }
        }
    }

    /// Takes note that no event of the projection lies between the first and this position.
    pub(super) fn reach(&mut self, position: i64) {
        if let Some(first) = self.0.front_mut() {
            first.reached = position;
        }
    }

    /// Takes note that the first is at this position in the database.
    pub(super) fn store(&mut self, position: i64) {
        if let Some(first) = self.0.front_mut() {
            first.stored.position = position;
            first.stored.highest = first.stored.highest.max(position);
            first.stored.attempt = first.stored.attempt.filter(|attempt| attempt.event.position > position);
            first.reached = position;
        }
    }

    /// Takes note of the attempt that is recorded in the first.
    pub(super) fn set_attempt(&mut self, attempt: Option<Attempt>) {
        if let Some(first) = self.0.front_mut() {
            first.stored.attempt = attempt;
        }
    }

    /// The row that has this key.
    pub(super) fn of_key(&self, key: i32) -> Option<&Row> {
        self.0.iter().find(|row| row.stored.keys.contains(key))
    }

    /// Takes note that the row that has this key has got this token.
    pub(super) fn set_token(&mut self, key: i32, token: i64) {
        if let Some(row) = self.0.iter_mut().find(|row| row.stored.keys.contains(key)) {
            row.stored.token = token;
        }
    }

    /// Takes note that the first has got this token.
    pub(super) fn renew_first(&mut self, token: i64) {
        if let Some(first) = self.0.front_mut() {
            first.stored.token = token;
        }
    }

    /// The lowest position in the database.
    pub(super) fn lowest(&self) -> i64 {
        self.0.iter().map(|row| row.stored.position).min().unwrap_or(0)
    }

    /// All keys of all rows.
    pub(super) fn keys(&self) -> KeySet {
        self.0.iter().fold(KeySet::default(), |all, row| all.union(&row.stored.keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(token: i64, k: usize, position: i64) -> Checkpoint {
        Checkpoint { token, keys: KeySet::partition(k, 4), position, highest: position, attempt: None }
    }

    fn bounds(rows: &Rows, head: i64) -> Option<(i64, i64)> {
        rows.range(head).map(|range| (range.after, range.upto))
    }

    #[test]
    fn lowest_row_is_advanced_first_and_not_beyond_the_next() {
        let mut rows = Rows::new(vec![row(1, 0, 30), row(2, 1, 10), row(3, 2, 20)]);
        assert_eq!(rows.first().unwrap().stored.token, 2);
        assert_eq!(bounds(&rows, 15), Some((10, 15)), "nor than the head");
        assert_eq!(bounds(&rows, 99), Some((10, 20)));
        assert_eq!(bounds(&rows, 10), None);
        assert!(rows.met().is_none());

        rows.reach(20);
        assert!(rows.first().unwrap().is_ahead());
        assert_eq!(bounds(&rows, 99), None, "first the two become one");
        let (first, next) = rows.met().unwrap();
        assert_eq!((first.stored.token, next.stored.token), (2, 3));
        rows.store(20);
        rows.merge();
        assert_eq!(
            rows.first().unwrap().stored,
            Checkpoint {
                token: 3,
                keys: KeySet::from_ranges([(16_384, 49_152)]),
                position: 20,
                highest: 20,
                attempt: None
            }
        );
        assert_eq!(bounds(&rows, 99), Some((20, 30)));
        assert_eq!(rows.keys(), KeySet::from_ranges([(0, 49_152)]));
    }

    #[test]
    fn range_ends_where_the_events_are_new() {
        let stored = Checkpoint { highest: 7, ..row(1, 0, 5) };
        let mut rows = Rows::new(vec![stored]);
        assert_eq!(bounds(&rows, 6), Some((5, 6)));
        assert_eq!(bounds(&rows, 9), Some((5, 7)));
        rows.store(7);
        assert_eq!(bounds(&rows, 9), Some((7, 9)));
    }

    #[test]
    fn last_row_is_advanced_up_to_the_head() {
        let mut rows = Rows::new(vec![row(1, 0, 5)]);
        assert_eq!(bounds(&rows, 9), Some((5, 9)));
        rows.store(9);
        assert!(!rows.first().unwrap().is_ahead());
        assert_eq!(bounds(&rows, 9), None);
        assert!(Rows::new(vec![]).range(9).is_none());
    }
}
