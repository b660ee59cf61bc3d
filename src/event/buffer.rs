//! Events stored together in memory. The events of a batch share two allocations, whatever their
//! number and their columns.

use std::ops::Range;
use std::time::SystemTime;

use uuid::Uuid;

/// The columns of one event, with texts of one type and a payload of another.
#[derive(Debug, Clone)]
pub(crate) struct Columns<T, B> {
    pub(crate) global_position: i64,
    pub(crate) bounded_context: T,
    pub(crate) aggregate_type: T,
    pub(crate) aggregate_id: T,
    pub(crate) aggregate_version: i64,
    pub(crate) event_id: Uuid,
    pub(crate) event_type: T,
    pub(crate) event_version: i32,
    pub(crate) payload: B,
    pub(crate) trace_id: Option<T>,
    pub(crate) correlation_id: Option<T>,
    pub(crate) causation_id: Option<T>,
    pub(crate) metadata: Option<T>,
    pub(crate) created_at: SystemTime,
}

/// The columns of an event that is put into a buffer or read from it.
pub(crate) type EventColumns<'a> = Columns<&'a str, &'a [u8]>;

impl<T, B> Columns<T, B> {
    fn map<U, C>(&self, mut text: impl FnMut(&T) -> U, payload: impl FnOnce(&B) -> C) -> Columns<U, C> {
        Columns {
            global_position: self.global_position,
            bounded_context: text(&self.bounded_context),
            aggregate_type: text(&self.aggregate_type),
            aggregate_id: text(&self.aggregate_id),
            aggregate_version: self.aggregate_version,
            event_id: self.event_id,
            event_type: text(&self.event_type),
            event_version: self.event_version,
            payload: payload(&self.payload),
            trace_id: self.trace_id.as_ref().map(&mut text),
            correlation_id: self.correlation_id.as_ref().map(&mut text),
            causation_id: self.causation_id.as_ref().map(&mut text),
            metadata: self.metadata.as_ref().map(&mut text),
            created_at: self.created_at,
        }
    }
}

impl EventColumns<'_> {
    /// The bytes of all texts and the payload together.
    pub(crate) fn bytes(&self) -> usize {
        let texts = [self.bounded_context, self.aggregate_type, self.aggregate_id, self.event_type];
        let optional = [self.trace_id, self.correlation_id, self.causation_id, self.metadata];
        self.payload.len()
            + texts.map(str::len).iter().sum::<usize>()
            + optional.iter().flatten().map(|text| text.len()).sum::<usize>()
    }
}

/// Where a value is in a buffer.
type Span = Range<usize>;

/// How much memory events take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    texts: usize,
    payloads: usize,
    events: usize,
}

impl Room {
    /// The bytes of their texts and payloads.
    pub(crate) fn bytes(self) -> usize {
        self.texts + self.payloads
    }
}

/// Events, stored one after the other.
#[derive(Debug, Default)]
pub(crate) struct EventBuffer {
    texts: String,
    payloads: Vec<u8>,
    events: Vec<Columns<Span, Span>>,
}

impl EventBuffer {
    pub(crate) fn with_room(room: Room) -> Self {
        Self {
            texts: String::with_capacity(room.texts),
            payloads: Vec::with_capacity(room.payloads),
            events: Vec::with_capacity(room.events),
        }
    }

    /// The room in use.
    pub(crate) fn room(&self) -> Room {
        Room { texts: self.texts.len(), payloads: self.payloads.len(), events: self.events.len() }
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn push(&mut self, event: &EventColumns<'_>) {
        let Self { texts, payloads, events } = self;
        events.push(event.map(
            |text| {
                let start = texts.len();
                texts.push_str(text);
                start..texts.len()
            },
            |payload| {
                let start = payloads.len();
                payloads.extend_from_slice(payload);
                start..payloads.len()
            },
        ));
    }

    /// The `index`-th event that was added.
    #[inline]
    pub(super) fn get(&self, index: usize) -> EventColumns<'_> {
        // The spans are always valid. Reading them in a way that cannot panic lets the compiler
        // remove the columns that a caller does not use.
        self.events[index].map(
            |span| self.texts.get(span.clone()).unwrap_or_default(),
            |span| self.payloads.get(span.clone()).unwrap_or_default(),
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::event::{Event, EventParts};

    #[test]
    fn every_column_is_read_back_from_the_buffer() {
        let metadata = || serde_json::value::RawValue::from_string(r#"{"user": "é"}"#.into()).unwrap();
        let parts = EventParts {
            global_position: 7,
            bounded_context: "shop".into(),
            aggregate_type: "Order".into(),
            aggregate_id: "órder-7".into(),
            aggregate_version: 3,
            event_id: uuid::Uuid::from_u128(9),
            event_type: "Placed".into(),
            event_version: 2,
            payload: vec![0, 255, 1],
            trace_id: Some("trace".into()),
            correlation_id: None,
            causation_id: Some(String::new()),
            metadata: Some(metadata()),
            created_at: std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(5),
        };
        let event = Event::from(parts.clone());
        assert_eq!(event.global_position(), parts.global_position);
        assert_eq!(event.bounded_context(), parts.bounded_context);
        assert_eq!(event.aggregate_type(), parts.aggregate_type);
        assert_eq!(event.aggregate_id(), parts.aggregate_id);
        assert_eq!(event.aggregate_version(), parts.aggregate_version);
        assert_eq!(event.event_id(), parts.event_id);
        assert_eq!(event.event_type(), parts.event_type);
        assert_eq!(event.event_version(), parts.event_version);
        assert_eq!(event.payload(), parts.payload);
        assert_eq!(event.trace_id(), Some("trace"));
        assert_eq!(event.correlation_id(), None);
        assert_eq!(event.causation_id(), Some(""));
        assert_eq!(event.metadata_json(), Some(metadata().get()));
        assert_eq!(event.created_at(), parts.created_at);
        let texts = ["shop", "Order", "órder-7", "Placed", "trace", r#"{"user": "é"}"#].map(str::len);
        assert_eq!(event.weight(), 3 + texts.iter().sum::<usize>());
    }

    #[test]
    fn events_that_share_a_buffer_are_kept_apart() {
        let mut buffer = super::EventBuffer::default();
        for (id, payload) in [("a", &b"first"[..]), ("", b""), ("bc", b"third")] {
            let event =
                Event::from(EventParts { aggregate_id: id.into(), payload: payload.into(), ..EventParts::default() });
            buffer.push(&event.columns());
        }
        let events = Event::all(buffer);
        let seen: Vec<_> = events.iter().map(|event| (event.aggregate_id(), event.payload())).collect();
        assert_eq!(seen, [("a", &b"first"[..]), ("", b""), ("bc", b"third")]);
    }
}
