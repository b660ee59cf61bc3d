//! Which events a reaction handles at the same time. Pure.
//!
//! *Invariants.* An event begins only after every earlier event of its aggregate is done. Events
//! begin in their order, apart from those that wait for that. So when events may not begin any
//! more, few are done behind one that is not, and those are completed first.

use std::collections::{BTreeSet, HashSet};

use crate::event::Event;

/// How many events, for each that may be in flight, may begin before an event that is not done.
const WINDOW: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Begun,
    Done,
    Failed,
}

/// The events of one batch, each waiting, begun, done or failed.
pub(super) struct Flight<'a> {
    events: &'a [Event],
    states: Vec<State>,
    most: usize,
    begun: usize,
    /// Events above this position do not begin.
    limit: i64,
}

impl<'a> Flight<'a> {
    /// At most this many events may be in flight. Those at the positions `done` are done already.
    pub(super) fn new(events: &'a [Event], most: usize, done: &BTreeSet<i64>) -> Self {
        let state = |event: &Event| if done.contains(&event.global_position()) { State::Done } else { State::Waiting };
        Self { events, states: events.iter().map(state).collect(), most, begun: 0, limit: i64::MAX }
    }

    /// The event that begins next, if one may begin now.
    pub(super) fn begin(&mut self) -> Option<(usize, &'a Event)> {
        if self.begun >= self.most {
            return None;
        }
        let mut blocked = HashSet::new();
        let first = self.done();
        let window = self.events.iter().enumerate().skip(first).take(self.most.saturating_mul(WINDOW));
        for (index, event) in window.take_while(|(_, event)| event.global_position() <= self.limit) {
            let state = self.states.get(index).copied().unwrap_or(State::Done);
            let aggregate = (event.bounded_context(), event.aggregate_type(), event.aggregate_id());
            if state == State::Waiting && !blocked.contains(&aggregate) {
                self.set(index, State::Begun);
                self.begun += 1;
                return Some((index, event));
            }
            if state != State::Done {
                blocked.insert(aggregate);
            }
        }
        None
    }

    /// Takes note that an event which has begun has ended. After a failure, no event above it
    /// begins.
    pub(super) fn ended(&mut self, index: usize, is_done: bool) {
        self.begun = self.begun.saturating_sub(1);
        self.set(index, if is_done { State::Done } else { State::Failed });
        if !is_done {
            let at = self.events.get(index).map_or(i64::MAX, Event::global_position);
            self.limit = self.limit.min(at);
        }
    }

    /// Lets no event begin any more, except those that come before one that is done or has begun.
    pub(super) fn land(&mut self) {
        let highest = self.states.iter().rposition(|state| matches!(state, State::Done | State::Begun));
        let at = highest.and_then(|index| self.events.get(index)).map_or(i64::MIN, Event::global_position);
        self.limit = self.limit.min(at);
    }

    /// Lets no event begin any more.
    pub(super) fn stop(&mut self) {
        self.limit = i64::MIN;
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.begun > 0
    }

    /// How many events from the front are done.
    pub(super) fn done(&self) -> usize {
        self.states.iter().take_while(|state| **state == State::Done).count()
    }

    /// The positions of the events that are done behind one that is not.
    pub(super) fn done_beyond(&self) -> BTreeSet<i64> {
        let beyond = self.events.iter().zip(&self.states).skip(self.done());
        beyond.filter(|(_, state)| **state == State::Done).map(|(event, _)| event.global_position()).collect()
    }

    fn set(&mut self, index: usize, state: State) {
        if let Some(cell) = self.states.get_mut(index) {
            *cell = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventParts;

    /// Events at the positions 1, 2, … of these aggregates.
    fn events(aggregates: &str) -> Vec<Event> {
        let event = |(position, aggregate): (i64, char)| {
            Event::from(EventParts {
                global_position: position,
                aggregate_id: aggregate.into(),
                ..EventParts::default()
            })
        };
        (1..).zip(aggregates.chars()).map(event).collect()
    }

    /// Lets as many events begin as may. Returns their positions.
    fn begun(flight: &mut Flight<'_>) -> Vec<i64> {
        std::iter::from_fn(|| flight.begin()).map(|(_, event)| event.global_position()).collect()
    }

    #[test]
    fn events_of_an_aggregate_begin_one_after_the_other() {
        let events = events("aabca");
        let mut flight = Flight::new(&events, 3, &BTreeSet::new());
        assert_eq!(begun(&mut flight), [1, 3, 4]);
        flight.ended(2, true);
        assert_eq!((begun(&mut flight), flight.done()), (vec![], 0));
        flight.ended(0, true);
        assert_eq!((begun(&mut flight), flight.done()), (vec![2], 1));
        flight.ended(1, true);
        assert_eq!((begun(&mut flight), flight.done()), (vec![5], 3));
        flight.ended(3, true);
        flight.ended(4, true);
        assert_eq!((begun(&mut flight), flight.done(), flight.is_in_flight()), (vec![], 5, false));
    }

    #[test]
    fn a_failure_lets_only_earlier_events_begin() {
        let events = events("abacd");
        let mut flight = Flight::new(&events, 2, &BTreeSet::new());
        assert_eq!(begun(&mut flight), [1, 2]);
        flight.ended(0, true);
        assert_eq!(begun(&mut flight), [3]);
        flight.ended(2, false);
        assert!(begun(&mut flight).is_empty(), "4 is behind the failed one");
        flight.ended(1, true);
        assert_eq!((begun(&mut flight), flight.done()), (vec![], 2));
        // Of an aggregate whose event has failed, no later event begins.
        let same = self::events("aab");
        let mut flight = Flight::new(&same, 3, &BTreeSet::new());
        assert_eq!(begun(&mut flight), [1, 3]);
        flight.ended(1, true);
        flight.ended(0, false);
        assert_eq!((begun(&mut flight), flight.done()), (vec![], 0));
    }

    #[test]
    fn landing_completes_what_comes_before_a_done_event() {
        let events = events("aabbcd");
        let mut flight = Flight::new(&events, 2, &BTreeSet::new());
        assert_eq!(begun(&mut flight), [1, 3]);
        flight.ended(2, true);
        assert_eq!(begun(&mut flight), [4]);
        flight.land();
        flight.ended(3, true);
        assert!(begun(&mut flight).is_empty(), "1 has not ended, and 5 is above every begun one");
        flight.ended(0, true);
        assert_eq!(begun(&mut flight), [2]);
        flight.ended(1, true);
        assert_eq!((flight.done(), flight.done_beyond(), begun(&mut flight)), (4, BTreeSet::new(), vec![]));
    }

    #[test]
    fn done_events_are_not_begun_again() {
        let events = events("abc");
        let mut flight = Flight::new(&events, 3, &[2].into());
        assert_eq!(begun(&mut flight), [1, 3]);
        flight.ended(2, true);
        assert_eq!((flight.done(), flight.done_beyond()), (0, [2, 3].into()));
        flight.stop();
        flight.ended(0, true);
        assert_eq!((flight.done(), flight.done_beyond()), (3, [].into()));
    }

    #[test]
    fn few_events_are_done_before_a_slow_one() {
        let text: String = std::iter::once('a').chain(std::iter::repeat_n('b', 200)).collect();
        let events = events(&text);
        let mut flight = Flight::new(&events, 2, &BTreeSet::new());
        assert_eq!(begun(&mut flight), [1, 2]);
        let mut done = 0;
        let mut index = 1;
        while index < events.len() {
            flight.ended(index, true);
            done += 1;
            match flight.begin() {
                Some((next, _)) => index = next,
                None => break,
            }
        }
        assert_eq!(done, 2 * WINDOW - 1);
    }
}
