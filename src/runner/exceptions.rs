//! Which events a runner does not handle: those of parked aggregates, and discarded ones. Pure.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::event::{Event, StreamId};
use crate::store::parked;

type ContextAndType = (Box<str>, Box<str>);

/// The parked aggregates and the discarded events of a runner's keys.
#[derive(Debug, Default)]
pub(super) struct Exceptions {
    /// By the aggregate's identifier: the contexts and types in which it is parked. So an event of
    /// another aggregate costs one look-up, and no allocation.
    parked: HashMap<Box<str>, Vec<ContextAndType>>,
    discarded: HashSet<Uuid>,
}

impl Exceptions {
    pub(super) fn new(found: &parked::Exceptions) -> Self {
        let mut exceptions = Self { parked: HashMap::new(), discarded: found.discarded.iter().copied().collect() };
        for parked in &found.parked {
            exceptions.park(&parked.stream);
        }
        exceptions
    }

    /// Takes note that an aggregate is parked.
    pub(super) fn park(&mut self, stream: &StreamId) {
        let names = (stream.bounded_context.as_str().into(), stream.aggregate_type.as_str().into());
        self.parked.entry(stream.aggregate_id.as_str().into()).or_default().push(names);
    }

    /// Takes note that an aggregate is no longer parked.
    pub(super) fn release(&mut self, stream: &StreamId) {
        if let Some(names) = self.parked.get_mut(stream.aggregate_id.as_str()) {
            names.retain(|(context, kind)| **context != *stream.bounded_context || **kind != *stream.aggregate_type);
            if names.is_empty() {
                self.parked.remove(stream.aggregate_id.as_str());
            }
        }
    }

    /// Removes the events that are not to be handled.
    pub(super) fn remove_from(&self, events: &mut Vec<Event>) {
        if !self.parked.is_empty() || !self.discarded.is_empty() {
            events.retain(|event| !self.is_parked(event) && !self.discarded.contains(&event.event_id()));
        }
    }

    fn is_parked(&self, event: &Event) -> bool {
        let Some(names) = self.parked.get(event.aggregate_id()) else { return false };
        let is_of = |(context, kind): &ContextAndType| {
            **context == *event.bounded_context() && **kind == *event.aggregate_type()
        };
        names.iter().any(is_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventParts;

    fn event(position: i64, stream: &StreamId) -> Event {
        Event::from(EventParts {
            global_position: position,
            event_id: Uuid::from_u128(position.unsigned_abs().into()),
            bounded_context: stream.bounded_context.clone(),
            aggregate_type: stream.aggregate_type.clone(),
            aggregate_id: stream.aggregate_id.clone(),
            ..EventParts::default()
        })
    }

    fn left(exceptions: &Exceptions, events: &[Event]) -> Vec<i64> {
        let mut events = events.to_vec();
        exceptions.remove_from(&mut events);
        events.iter().map(Event::global_position).collect()
    }

    #[test]
    fn events_of_parked_aggregates_and_discarded_ones_are_removed() {
        let order = StreamId::new("shop", "Order", "7");
        let (other, invoice) = (StreamId::new("shop", "Order", "8"), StreamId::new("shop", "Invoice", "7"));
        let events = [event(1, &order), event(2, &other), event(3, &invoice), event(4, &order), event(5, &other)];
        let mut exceptions = Exceptions::default();
        assert_eq!(left(&exceptions, &events), [1, 2, 3, 4, 5]);
        exceptions.discarded.insert(Uuid::from_u128(5));
        assert_eq!(left(&exceptions, &events), [1, 2, 3, 4]);
        exceptions.park(&order);
        assert_eq!(left(&exceptions, &events), [2, 3]);
        exceptions.park(&invoice);
        assert_eq!(left(&exceptions, &events), [2]);
        exceptions.release(&order);
        assert_eq!(left(&exceptions, &events), [1, 2, 4]);
        exceptions.release(&invoice);
        assert!(exceptions.parked.is_empty());
    }
}
