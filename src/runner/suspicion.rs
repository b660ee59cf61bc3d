//! Decides what follows from attempts that ended uncleanly, that is, together with their
//! connection, their process or the server: whether to record the next attempt, how many events to
//! try, and when to halt. Pure.
//!
//! It is not known which event of a batch was the reason, only which event was the first. So the
//! batch is tried once more, and then its events are tried one by one, each recorded with the count
//! of the batch. This finds the event that is the reason, and its count reaches the limit.

use crate::event::Event;
use crate::store::fence::Attempt;

/// After this many unclean ends of a batch, its events are tried one by one.
const TOGETHER: u32 = 2;

/// What is known about unclean ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Suspect {
    /// The position of the first event of the attempt.
    first: i64,
    /// How many attempts have ended uncleanly.
    attempts: u32,
    /// Up to which position the events are tried one by one, once that has begun.
    until: Option<i64>,
}

/// How to handle the next events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Approach {
    /// Handle this many events from the front of the batch. Before that, record the attempt at the
    /// first of them with this number, if there is one.
    Handle { count: usize, record: Option<u32> },
    /// Handle none: this many attempts at the first event have ended uncleanly.
    Halt(u32),
}

#[derive(Debug)]
pub(super) struct Suspicion {
    suspect: Option<Suspect>,
    /// The next attempt is to be recorded, because it is not known what happened before, or because
    /// the last attempt ended uncleanly.
    is_uncertain: bool,
    /// The first event of the attempt in progress, and the number with which it is recorded.
    under_way: Option<(i64, Option<u32>)>,
}

impl Suspicion {
    /// The state of a runner that has handled nothing yet.
    pub(super) fn new() -> Self {
        Self { suspect: None, is_uncertain: true, under_way: None }
    }

    /// How many attempts at the next events have ended uncleanly.
    pub(super) fn attempts(&self) -> u32 {
        self.suspect.map_or(0, |suspect| suspect.attempts)
    }

    /// The number to record when this owner stops while events are being tried one by one, so that
    /// the next owner continues in the same way.
    pub(super) fn unfinished(&self) -> Option<u32> {
        self.suspect.filter(|suspect| suspect.until.is_some()).map(|suspect| suspect.attempts)
    }

    /// Takes the attempt that a row had when this owner loaded it for the first time.
    pub(super) fn found(&mut self, attempt: Attempt) {
        if attempt.number > self.attempts() {
            self.suspect = Some(Suspect { first: attempt.event.position, attempts: attempt.number, until: None });
        }
    }

    /// Decides about a batch. All events up to `reached` are handled, and no event lies between the
    /// last of the batch and `end`. `is_due` means that an event is tried although its attempts are
    /// used up.
    pub(super) fn approach(
        &mut self,
        events: &[Event],
        reached: i64,
        end: i64,
        allowed: u32,
        is_due: bool,
    ) -> Approach {
        let approach = self.decide(events, reached, end, allowed, is_due);
        if let (Approach::Handle { record, .. }, Some(first)) = (approach, events.first()) {
            self.under_way = Some((first.global_position(), record));
        }
        approach
    }

    fn decide(&mut self, events: &[Event], reached: i64, end: i64, allowed: u32, is_due: bool) -> Approach {
        let first = events.first().map_or(end, Event::global_position);
        // The last commit may have succeeded although that was not known.
        self.suspect = self.suspect.filter(|suspect| suspect.until.unwrap_or(suspect.first) > reached);
        let Some(suspect) = &mut self.suspect else { return self.unsuspected(events) };
        if suspect.attempts < TOGETHER {
            return Approach::Handle { count: events.len(), record: Some(suspect.attempts + 1) };
        }
        if suspect.attempts == TOGETHER {
            suspect.until.get_or_insert(end);
            return Approach::Handle { count: 1, record: Some(suspect.attempts + 1) };
        }
        // The suspect was tried alone.
        let before = events.partition_point(|event| event.global_position() < suspect.first);
        if before > 0 {
            // These are events of another row that was merged with this one. They may end an
            // attempt as well.
            return Approach::Handle { count: before, record: self.is_uncertain.then_some(1) };
        }
        if first > suspect.first {
            // The suspect is not among the events of this row: the row was cut.
            self.suspect = None;
            return self.unsuspected(events);
        }
        if suspect.attempts >= allowed && !is_due {
            return Approach::Halt(suspect.attempts);
        }
        Approach::Handle { count: 1, record: Some(suspect.attempts.saturating_add(1)) }
    }

    fn unsuspected(&self, events: &[Event]) -> Approach {
        Approach::Handle { count: events.len(), record: self.is_uncertain.then_some(1) }
    }

    /// Takes note that everything up to this position has been committed.
    pub(super) fn committed(&mut self, position: i64) {
        self.suspect = self.suspect.filter(|suspect| suspect.until.unwrap_or(suspect.first) > position);
        self.is_uncertain = false;
        self.under_way = None;
    }

    /// Takes note that the attempt ended uncleanly, for a reason that may be its events.
    pub(super) fn ended_uncleanly(&mut self) {
        if let Some((first, record)) = self.under_way.take() {
            self.suspect = Some(Suspect { first, attempts: record.unwrap_or(1), until: None });
        }
        self.is_uncertain = true;
    }

    /// Takes note that the connection was lost, for another reason.
    pub(super) fn interrupted(&mut self) {
        self.is_uncertain = true;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::EventParts;
    use crate::store::fence::EventMark;

    fn events(positions: &[i64]) -> Vec<Event> {
        positions.iter().map(|at| Event::from(EventParts { global_position: *at, ..EventParts::default() })).collect()
    }

    fn found(position: i64, number: u32) -> Suspicion {
        let mut suspicion = Suspicion::new();
        suspicion.found(Attempt { event: EventMark { position, id: Uuid::nil() }, number });
        suspicion
    }

    fn handle(count: usize, record: impl Into<Option<u32>>) -> Approach {
        Approach::Handle { count, record: record.into() }
    }

    #[test]
    fn the_first_attempt_is_recorded_and_further_ones_are_not() {
        let mut suspicion = Suspicion::new();
        let first = events(&[3, 5]);
        assert_eq!(suspicion.approach(&first, 0, 9, 8, false), handle(2, 1));
        // The attempt failed by itself.
        assert_eq!(suspicion.approach(&first, 0, 9, 8, false), handle(2, 1));
        suspicion.committed(9);
        assert_eq!(suspicion.approach(&events(&[12]), 9, 12, 8, false), handle(1, None));
        suspicion.interrupted();
        assert_eq!(suspicion.approach(&events(&[12]), 9, 12, 8, false), handle(1, 1));
    }

    #[test]
    fn approaches_follow_from_the_attempts_that_were_found() {
        let batch = events(&[3, 5, 7]);
        // Where the attempt was, its number, the attempts allowed, whether another is due.
        for (position, number, allowed, is_due, approach) in [
            (3, 1, 8, false, handle(3, 2)),
            (3, 1, 1, false, handle(3, 2)),
            (3, 2, 8, false, handle(1, 3)),
            // The limit applies only after an event was tried alone, which shows that it is the
            // reason.
            (3, 2, 1, false, handle(1, 3)),
            (3, 3, 1, false, Approach::Halt(3)),
            (3, 3, 3, false, Approach::Halt(3)),
            (3, 3, 4, false, handle(1, 4)),
            (3, 7, 8, false, handle(1, 8)),
            (3, 8, 8, false, Approach::Halt(8)),
            (3, 9, 8, false, Approach::Halt(9)),
            (3, 9, 8, true, handle(1, 10)),
            // Other events come first.
            (7, 8, 8, false, handle(2, 1)),
            (7, 2, 8, false, handle(1, 3)),
            // These events are of another row, which was cut from the same row as the suspect's.
            (2, 8, 8, false, handle(3, 1)),
            // The commit succeeded, but its answer was lost.
            (1, 1, 8, false, handle(3, 1)),
            (1, 8, 8, false, handle(3, 1)),
        ] {
            let case = format!("{number} at {position}, {allowed} allowed, due: {is_due}");
            assert_eq!(found(position, number).approach(&batch, 1, 8, allowed, is_due), approach, "{case}");
        }
    }

    #[test]
    fn events_are_tried_one_by_one_up_to_the_end_of_the_batch() {
        let mut suspicion = found(3, 2);
        assert_eq!(suspicion.approach(&events(&[3, 5, 7]), 1, 8, 8, false), handle(1, 3));
        suspicion.committed(3);
        assert_eq!((suspicion.attempts(), suspicion.unfinished()), (2, Some(2)));
        // By now the batch has another event.
        assert_eq!(suspicion.approach(&events(&[5, 7, 9]), 3, 10, 8, false), handle(1, 3));
        suspicion.committed(5);
        assert_eq!(suspicion.approach(&events(&[7, 9]), 5, 10, 8, false), handle(1, 3));
        suspicion.committed(8);
        assert_eq!((suspicion.attempts(), suspicion.unfinished()), (0, None));
        assert_eq!(suspicion.approach(&events(&[9]), 8, 10, 8, false), handle(1, None));
    }

    /// The projection halts when as many attempts as are allowed have ended with their connection.
    #[test]
    fn an_event_that_ends_its_connection_is_found_and_halts() {
        let batch = events(&[3, 5, 7, 9]);
        let (poison, allowed) = (7, 8);
        let (mut suspicion, mut reached, mut ends) = (Suspicion::new(), 0, 0);
        suspicion.committed(0);
        let halted = loop {
            let left: Vec<Event> = batch.iter().filter(|event| event.global_position() > reached).cloned().collect();
            match suspicion.approach(&left, reached, 9, allowed, false) {
                Approach::Halt(attempts) => break (left[0].global_position(), attempts),
                Approach::Handle { count, .. } => {
                    if left[..count].iter().any(|event| event.global_position() == poison) {
                        suspicion.ended_uncleanly();
                        ends += 1;
                    } else {
                        reached = left[count - 1].global_position();
                        suspicion.committed(reached);
                    }
                }
            }
        };
        assert_eq!((halted, ends), ((poison, allowed), 8));
    }
}
