//! A committed event that was read.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::buffer::{EventBuffer, EventColumns};
use super::stream_id::StreamId;

/// A committed event. A clone is cheap: it shares the memory that holds all events that were read
/// together.
#[derive(Clone)]
pub struct Event {
    buffer: Arc<EventBuffer>,
    index: usize,
}

/// The columns of an event. They are public so that the tests of a projection can build events
/// without a database.
///
/// ```
/// use pupsourcing_orchestrator::{Event, EventParts};
///
/// let event = Event::from(EventParts {
///     global_position: 7,
///     aggregate_type: "Order".into(),
///     event_type: "OrderPlaced".into(),
///     payload: br#"{"total":12}"#.to_vec(),
///     ..EventParts::default()
/// });
/// assert_eq!(event.event_type(), "OrderPlaced");
/// ```
#[derive(Debug, Clone)]
pub struct EventParts {
    /// The event's position among all events.
    pub global_position: i64,
    /// The bounded context of the event's aggregate.
    pub bounded_context: String,
    /// The type of the event's aggregate.
    pub aggregate_type: String,
    /// The identifier of the event's aggregate.
    pub aggregate_id: String,
    /// The event's position among the events of its aggregate, from 1.
    pub aggregate_version: i64,
    /// The event's own identifier.
    pub event_id: Uuid,
    /// The type of the event.
    pub event_type: String,
    /// The version of the payload's format.
    pub event_version: i32,
    /// The payload, in the encoding that the application chose.
    pub payload: Vec<u8>,
    /// The trace that the event belongs to.
    pub trace_id: Option<String>,
    /// The identifier that correlates the event with others.
    pub correlation_id: Option<String>,
    /// The identifier of what caused the event.
    pub causation_id: Option<String>,
    /// Further data about the event, as JSON text.
    pub metadata: Option<Box<RawValue>>,
    /// When the event was inserted, by the server's clock.
    pub created_at: SystemTime,
}

impl Default for EventParts {
    fn default() -> Self {
        Self {
            global_position: 0,
            bounded_context: String::new(),
            aggregate_type: String::new(),
            aggregate_id: String::new(),
            aggregate_version: 1,
            event_id: Uuid::nil(),
            event_type: String::new(),
            event_version: 1,
            payload: Vec::new(),
            trace_id: None,
            correlation_id: None,
            causation_id: None,
            metadata: None,
            created_at: SystemTime::UNIX_EPOCH,
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Event").field(&self.columns()).finish()
    }
}

impl From<EventParts> for Event {
    fn from(parts: EventParts) -> Self {
        let mut buffer = EventBuffer::default();
        buffer.push(&EventColumns {
            global_position: parts.global_position,
            bounded_context: &parts.bounded_context,
            aggregate_type: &parts.aggregate_type,
            aggregate_id: &parts.aggregate_id,
            aggregate_version: parts.aggregate_version,
            event_id: parts.event_id,
            event_type: &parts.event_type,
            event_version: parts.event_version,
            payload: &parts.payload,
            trace_id: parts.trace_id.as_deref(),
            correlation_id: parts.correlation_id.as_deref(),
            causation_id: parts.causation_id.as_deref(),
            metadata: parts.metadata.as_deref().map(RawValue::get),
            created_at: parts.created_at,
        });
        Self { buffer: Arc::new(buffer), index: 0 }
    }
}

impl Event {
    /// Returns every event of a buffer, in the order in which they were added.
    pub(crate) fn all(buffer: EventBuffer) -> Vec<Self> {
        let buffer = Arc::new(buffer);
        (0..buffer.len()).map(|index| Self { buffer: buffer.clone(), index }).collect()
    }

    #[inline]
    pub(super) fn columns(&self) -> EventColumns<'_> {
        self.buffer.get(self.index)
    }

    /// The event's position among all events: unique and ascending, with holes where transactions
    /// rolled back.
    pub fn global_position(&self) -> i64 {
        self.columns().global_position
    }

    /// The bounded context of the event's aggregate.
    pub fn bounded_context(&self) -> &str {
        self.columns().bounded_context
    }

    /// The type of the event's aggregate.
    pub fn aggregate_type(&self) -> &str {
        self.columns().aggregate_type
    }

    /// The identifier of the event's aggregate.
    pub fn aggregate_id(&self) -> &str {
        self.columns().aggregate_id
    }

    /// The name of the event's aggregate.
    pub fn stream(&self) -> StreamId {
        let EventColumns { bounded_context, aggregate_type, aggregate_id, .. } = self.columns();
        StreamId::new(bounded_context, aggregate_type, aggregate_id)
    }

    /// The event's position among the events of its aggregate, from 1.
    pub fn aggregate_version(&self) -> i64 {
        self.columns().aggregate_version
    }

    /// The event's own identifier. It is unique: deduplicate effects outside the transaction by it.
    pub fn event_id(&self) -> Uuid {
        self.columns().event_id
    }

    /// The type of the event.
    pub fn event_type(&self) -> &str {
        self.columns().event_type
    }

    /// The version of the payload's format.
    pub fn event_version(&self) -> i32 {
        self.columns().event_version
    }

    /// The payload's bytes, in the encoding that the application chose.
    pub fn payload(&self) -> &[u8] {
        self.columns().payload
    }

    /// The trace that the event belongs to.
    pub fn trace_id(&self) -> Option<&str> {
        self.columns().trace_id
    }

    /// The identifier that correlates the event with others.
    pub fn correlation_id(&self) -> Option<&str> {
        self.columns().correlation_id
    }

    /// The identifier of what caused the event.
    pub fn causation_id(&self) -> Option<&str> {
        self.columns().causation_id
    }

    /// The metadata as JSON text.
    pub fn metadata_json(&self) -> Option<&str> {
        self.columns().metadata
    }

    /// The metadata, parsed again on every call.
    pub fn metadata(&self) -> Option<Value> {
        // The server checked the metadata when it was stored, so parsing cannot fail.
        self.metadata_json().and_then(|text| serde_json::from_str(text).ok())
    }

    /// When the event was inserted, by the server's clock.
    pub fn created_at(&self) -> SystemTime {
        self.columns().created_at
    }

    /// The bytes that count against `batch_bytes`.
    pub(crate) fn weight(&self) -> usize {
        self.columns().bytes()
    }
}
