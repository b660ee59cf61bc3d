//! Reports which transactions block the safe head, once it has not moved for a while.

use std::time::{Duration, Instant};

use super::head::Head;
use crate::backoff::Mentions;
use crate::error::field;
use crate::metrics::ReplicaSetMetrics;
use crate::status::{Board, HeadBlocker};
use crate::store::safe_head;
use crate::store::session::Session;

/// How long the head must be blocked before it is reported: writers block it for shorter periods
/// all the time. It is also how often the blockers are looked up again.
const NOTICE: Duration = Duration::from_secs(1);

/// How many blockers are named at most, the oldest ones. An operator would not act on more.
const MOST_BLOCKERS: usize = 10;

/// Reports what blocks the head: on the board, in the metrics and in the log.
pub(super) struct Blocked<'a> {
    board: &'a Board,
    metrics: &'a ReplicaSetMetrics,
    standstill: Standstill,
    is_logged: bool,
    mentions: Mentions,
}

impl<'a> Blocked<'a> {
    /// Begins with a head that moves: its blockers may have ended together with the last
    /// connection. If not, they are soon found again.
    pub(super) fn new(board: &'a Board, metrics: &'a ReplicaSetMetrics) -> Self {
        let blocked =
            Self { board, metrics, standstill: Standstill::default(), is_logged: false, mentions: Mentions::default() };
        blocked.show_moving();
        blocked
    }

    pub(super) fn report(&mut self, session: &mut Session, head: &Head) -> Result<(), postgres::Error> {
        let holders = head.blockers();
        let now = Instant::now();
        if self.standstill.end_unless_held_at(head.safe(), !holders.is_empty()) {
            self.show_moving();
            // The mentions are not reset: one long transaction after another is the same condition.
            if std::mem::take(&mut self.is_logged) {
                log::info!(
                    "safe head moves again: replica_set={} worker={} head={}",
                    field(&self.board.replica_set()),
                    self.board.worker_id(),
                    head.safe()
                );
            }
        }
        if holders.is_empty() {
            return Ok(());
        }
        if let Some(since) = self.standstill.take_due(head.safe(), now) {
            let mut blockers = session.run(|client| safe_head::describe_holders(client, &holders))?;
            blockers.truncate(MOST_BLOCKERS);
            self.show_blocked(since, head.safe(), blockers);
        }
        Ok(())
    }

    fn show_moving(&self) {
        self.board.set_head_blocked(None);
        self.metrics.head_blocked.set(0.0);
        self.metrics.head_blocker_age.set(0.0);
    }

    fn show_blocked(&mut self, since: Instant, head: i64, blockers: Vec<HeadBlocker>) {
        self.metrics.head_blocked.set(since.elapsed().as_secs_f64());
        let oldest = blockers.iter().map(|blocker| blocker.age).max().unwrap_or_default();
        self.metrics.head_blocker_age.set(oldest.as_secs_f64());
        if self.mentions.is_due() {
            self.is_logged = true;
            for blocker in &blockers {
                log::warn!(
                    "safe head blocked by an open transaction: replica_set={} worker={} head={head} for={:?} pid={} \
                     application_name={} transaction_age={:?}",
                    field(&self.board.replica_set()),
                    self.board.worker_id(),
                    since.elapsed(),
                    blocker.pid.map_or_else(|| "prepared".to_owned(), |pid| pid.to_string()),
                    field(&blocker.name),
                    blocker.age
                );
            }
        }
        self.board.set_head_blocked(Some((since, blockers)));
    }
}

/// How long the head has been blocked at one position, and when the blockers were last described.
/// Pure.
#[derive(Debug, Default)]
struct Standstill {
    began: Option<(Instant, i64)>,
    described_at: Option<Instant>,
}

impl Standstill {
    /// Forgets the standstill if the head has moved or is no longer blocked. Returns whether a
    /// standstill that was described has ended.
    fn end_unless_held_at(&mut self, head: i64, is_held_back: bool) -> bool {
        let goes_on = is_held_back && self.began.is_none_or(|(_, at)| at == head);
        !goes_on && std::mem::take(self).described_at.is_some()
    }

    /// Takes note that the head is blocked. If this is due to be described, returns since when it
    /// is blocked.
    fn take_due(&mut self, head: i64, now: Instant) -> Option<Instant> {
        let (since, _) = *self.began.get_or_insert((now, head));
        let has_passed = |at: Instant| now.saturating_duration_since(at) >= NOTICE;
        let is_due = has_passed(since) && self.described_at.is_none_or(has_passed);
        if is_due {
            self.described_at = Some(now);
        }
        is_due.then_some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_described_after_a_while_and_its_end_once() {
        let start = Instant::now();
        let mut standstill = Standstill::default();
        // Milliseconds, the head, whether it is held back; whether a described standstill has
        // ended, and since when the new one is to be described.
        for (millis, head, is_held_back, has_ended, due) in [
            (0, 5, false, false, None),
            (100, 5, true, false, None),
            (1_099, 5, true, false, None),
            (1_100, 5, true, false, Some(100)),
            (2_099, 5, true, false, None),
            (2_100, 5, true, false, Some(100)),
            // It moves, and the next transaction blocks it at once.
            (2_200, 7, true, true, None),
            (3_200, 7, true, false, Some(2_200)),
            (3_300, 7, false, true, None),
            (3_400, 7, false, false, None),
            // Too short to be reported.
            (3_500, 8, true, false, None),
            (4_400, 9, true, false, None),
            (5_300, 9, true, false, None),
            (5_400, 9, true, false, Some(4_400)),
        ] {
            let now = start + Duration::from_millis(millis);
            assert_eq!(standstill.end_unless_held_at(head, is_held_back), has_ended, "after {millis} ms");
            let since = if is_held_back { standstill.take_due(head, now) } else { None };
            assert_eq!(since, due.map(|due| start + Duration::from_millis(due)), "after {millis} ms");
        }
    }
}
