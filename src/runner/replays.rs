//! What a runner knows about its replays, and what it decides about them.

use std::time::{Duration, Instant};

use super::failure::{self, Failure};
use super::verdict::{Attempts, Verdict};
use crate::backoff::Backoff;
use crate::config::Retry;
use crate::event::{Event, StreamId};
use crate::store::events::Bounds;
use crate::store::parked::{Parked, Waiting};

/// After this many replays that ended uncleanly at the same event, its aggregate stays parked.
const UNCLEAN_ENDS: u32 = 3;

/// The most events of one portion. For each portion, the server looks up all positions of the
/// aggregate.
const PORTION: usize = 500;

/// What a runner knows about replays beyond what it has loaded.
#[derive(Debug)]
pub(super) struct Replays {
    /// Whether a portion is handled before the next batch.
    pub(super) is_next: bool,
    current: Option<Current>,
    delays: Backoff,
    /// When to go on after a failure that no event causes.
    due: Option<Instant>,
}

/// The replay in progress, also while its rows are loaded again.
#[derive(Debug)]
struct Current {
    stream: StreamId,
    position: i64,
    /// How many replays have ended uncleanly at this position.
    unclean: u32,
    /// Whether the database knows that the replay has begun.
    is_begun: bool,
    /// How many events to handle next, at most.
    most: usize,
    /// How many events it has handled.
    handled: u64,
    attempts: Attempts,
}

impl Replays {
    pub(super) fn new(retry: &Retry) -> Self {
        let delays = Backoff::new(retry.first_delay, retry.longest_delay);
        Self { is_next: true, current: None, delays, due: None }
    }

    /// How soon a replay may go on.
    pub(super) fn wait(&self) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()))
    }

    /// Continues with an aggregate. Returns how many events to handle next, at most.
    pub(super) fn go_on(&mut self, parked: &Parked, bounds: Bounds) -> usize {
        let known = self.current.take().filter(|current| current.stream == parked.stream);
        let current = known.map_or_else(|| Current::new(parked), |current| current.at(parked.event.position));
        self.current.insert(current).most.clamp(1, bounds.events)
    }

    /// How many replays have ended uncleanly at the next event.
    pub(super) fn unclean_ends(&self) -> u32 {
        self.current.as_ref().map_or(0, |current| current.unclean)
    }

    /// The number with which the database is to know that the replay has begun, if it does not know
    /// it yet.
    pub(super) fn number_to_record(&self) -> Option<u32> {
        self.current.as_ref().filter(|current| !current.is_begun).map(|current| current.unclean + 1)
    }

    /// Takes note that the database knows that the replay has begun.
    pub(super) fn begun(&mut self) {
        if let Some(current) = &mut self.current {
            current.is_begun = true;
        }
    }

    /// The aggregate and the number to record if the replay stops here by itself.
    pub(super) fn unfinished(&self) -> Option<(&StreamId, u32)> {
        let current = self.current.as_ref().filter(|current| current.is_begun)?;
        Some((&current.stream, current.unclean))
    }

    /// Why the replay is given up before this event, if it has ended uncleanly too often.
    pub(super) fn given_up(&self, first: &Event) -> Option<Failure> {
        let unclean = self.unclean_ends();
        (unclean >= UNCLEAN_ENDS).then(|| Failure::Suspected(failure::ended_uncleanly(unclean, first).into()))
    }

    /// Takes the failure of a portion, and returns what to do about it.
    pub(super) fn judge(&mut self, failure: &Failure) -> Verdict {
        let Some(current) = &mut self.current else { return Verdict::Reload };
        if let Failure::Lost(_) = failure {
            current.unclean += 1;
            current.is_begun = false;
            current.most = 1;
            self.is_next = false;
            return Verdict::Reload;
        }
        let verdict = current.attempts.judge(failure);
        match verdict {
            Verdict::CommitFirst(events) => current.most = events,
            Verdict::Repeat => {}
            // A failure that is repeated must not keep the next batch from being handled.
            Verdict::Reload | Verdict::ReloadLater => {
                self.is_next = false;
                self.due = Some(Instant::now() + self.delays.next_delay());
            }
            _ => self.is_next = false,
        }
        verdict
    }

    /// Takes note that this many events have been handled and committed, and that the replay goes
    /// on at this position, unless it has ended. Returns how many events the whole replay has
    /// handled.
    pub(super) fn committed(&mut self, events: usize, next: Option<i64>) -> u64 {
        self.is_next = false;
        self.due = None;
        self.delays.reset();
        let Some(current) = self.current.take() else { return 0 };
        let handled = current.handled + u64::try_from(events).unwrap_or(0);
        self.current = next.map(|position| Current { handled, ..current.at(position) });
        handled
    }

    /// Takes note that the replay has ended without handling all events.
    pub(super) fn ended(&mut self) {
        self.is_next = false;
        self.current = None;
    }
}

impl Current {
    fn new(parked: &Parked) -> Self {
        Self {
            stream: parked.stream.clone(),
            position: parked.event.position,
            unclean: parked.replays_begun,
            is_begun: false,
            most: if parked.replays_begun > 0 { 1 } else { PORTION },
            handled: 0,
            attempts: Attempts::new(1, false),
        }
    }

    /// The same replay at another position. The statement that moved the position has also recorded
    /// that the replay has begun once there. If events were tried one by one because an attempt
    /// ended uncleanly, or to find the one that fails, they still are: more and more at a time.
    fn at(mut self, position: i64) -> Self {
        if self.position != position {
            self.attempts.succeeded();
            self.most = if self.unclean > 0 { 1 } else { (self.most * 2).min(PORTION) };
            self.position = position;
            self.unclean = 0;
        }
        self
    }
}

/// How many of these events, from the front, are handled in one transaction: as many as are within
/// the bounds, and either all at or below the highest position or all above it.
pub(super) fn portion(waiting: &[Waiting], most: usize, bounds: Bounds, highest: i64) -> usize {
    let is_replay = |waiting: &Waiting| waiting.event.position <= highest;
    let begins = waiting.first().map(is_replay);
    let mut total = 0_usize;
    let fits = waiting.iter().take(most).enumerate().take_while(|(index, next)| {
        total = total.saturating_add(next.weight);
        let is_small = next.weight <= bounds.event_bytes && (*index == 0 || total <= bounds.bytes);
        is_small && begins == Some(is_replay(next))
    });
    fits.count()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::EventParts;
    use crate::store::fence::EventMark;

    const BOUNDS: Bounds = Bounds { events: 1_000, bytes: 100, event_bytes: 150 };

    fn parked(position: i64, replays_begun: u32) -> Parked {
        let stream = StreamId::new("shop", "Order", "7");
        let event = EventMark { position, id: Uuid::nil() };
        Parked { stream, key: 1, event, event_type: String::new(), highest: 0, is_requested: true, replays_begun }
    }

    fn replays() -> Replays {
        Replays::new(&Retry::default())
    }

    #[test]
    fn portions_keep_within_the_bounds() {
        let waiting = |events: &[(i64, usize)]| -> Vec<Waiting> {
            let one = |&(position, weight)| Waiting {
                event: EventMark { position, id: Uuid::nil() },
                event_type: "Happened".into(),
                weight,
            };
            events.iter().map(one).collect()
        };
        for (events, most, highest, count) in [
            (&[][..], 5, 0, 0),
            (&[(1, 10), (2, 10), (3, 10)], 5, 0, 3),
            (&[(1, 10), (2, 10), (3, 10)], 2, 0, 2),
            (&[(1, 60), (2, 40), (3, 1)], 5, 0, 2),
            (&[(1, 120), (2, 1)], 5, 0, 1),
            (&[(1, 10), (2, 151)], 5, 0, 1),
            (&[(1, 151)], 5, 0, 0),
            (&[(1, 10), (2, 10), (3, 10)], 5, 2, 2),
            (&[(3, 10), (4, 10)], 5, 2, 2),
        ] {
            assert_eq!(portion(&waiting(events), most, BOUNDS, highest), count, "{events:?}");
        }
    }

    #[test]
    fn unclean_ends_are_counted_at_each_event() {
        let first = Event::from(EventParts::default());
        let mut replays = replays();
        assert_eq!(replays.go_on(&parked(7, 0), BOUNDS), PORTION);
        assert_eq!(replays.number_to_record(), Some(1));
        replays.begun();
        assert_eq!((replays.number_to_record(), replays.unfinished().map(|(_, left)| left)), (None, Some(0)));
        for ends in 1..=3 {
            assert!(replays.given_up(&first).is_none());
            assert_eq!(replays.judge(&Failure::Lost("the connection is gone".into())), Verdict::Reload);
            assert_eq!(replays.go_on(&parked(7, ends), BOUNDS), 1);
            assert_eq!(replays.number_to_record(), Some(ends + 1));
        }
        assert!(matches!(replays.given_up(&first), Some(Failure::Suspected(_))));

        // What other owners have recorded counts as well, until an event is handled.
        let mut replays = self::replays();
        assert_eq!(replays.go_on(&parked(7, 2), BOUNDS), 1);
        replays.begun();
        assert_eq!(replays.judge(&Failure::Connection("it is closed".into())), Verdict::Reload);
        assert_eq!((replays.go_on(&parked(7, 3), BOUNDS), replays.unclean_ends()), (1, 2), "it does not count");
        assert_eq!(replays.committed(1, Some(9)), 1);
        assert_eq!((replays.go_on(&parked(9, 1), BOUNDS), replays.unclean_ends()), (1, 0));
        assert_eq!(replays.committed(1, None), 2);
        assert!(replays.unfinished().is_none());
    }

    #[test]
    fn one_failure_of_an_event_ends_its_replay() {
        let mut replays = replays();
        replays.go_on(&parked(7, 0), BOUNDS);
        let handler = |handled| Failure::Handler { error: "no such customer".into(), handled };
        assert_eq!(replays.judge(&handler(3)), Verdict::CommitFirst(3));
        assert_eq!(replays.go_on(&parked(7, 0), BOUNDS), 3);
        assert_eq!(replays.judge(&handler(0)), Verdict::Halt);
        let full = Failure::Environment { error: "the disk is full".into(), handled: 0 };
        assert!(replays.wait().is_zero());
        assert_eq!(replays.judge(&full), Verdict::ReloadLater);
        assert!(!replays.wait().is_zero());
    }
}
