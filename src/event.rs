//! Events: as they are read, and as they are appended.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

/// A committed event. Cloning it is cheap: its parts are shared.
#[derive(Debug, Clone)]
pub struct Event {
    parts: Arc<EventParts>,
}

/// The columns of an event. Public so that the tests of a projection can build events without a database.
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
    /// Its place among all events.
    pub global_position: i64,
    /// The bounded context of its aggregate.
    pub bounded_context: String,
    /// The type of its aggregate.
    pub aggregate_type: String,
    /// The identifier of its aggregate.
    pub aggregate_id: String,
    /// Its place among the events of its aggregate, from 1.
    pub aggregate_version: i64,
    /// Its own identifier.
    pub event_id: Uuid,
    /// What happened.
    pub event_type: String,
    /// The version of the payload's form.
    pub event_version: i32,
    /// The payload, in whatever encoding the application chose.
    pub payload: Vec<u8>,
    /// The trace it belongs to.
    pub trace_id: Option<String>,
    /// What it is correlated with.
    pub correlation_id: Option<String>,
    /// What caused it.
    pub causation_id: Option<String>,
    /// Anything else, as JSON text.
    pub metadata: Option<Box<RawValue>>,
    /// When it was inserted, by the server's clock.
    pub created_at: SystemTime,
    /// Its key: the low 16 bits of PostgreSQL's hash of the aggregate id. It decides which partition handles the event.
    pub key: i32,
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
            key: 0,
        }
    }
}

impl From<EventParts> for Event {
    fn from(parts: EventParts) -> Self {
        Self { parts: Arc::new(parts) }
    }
}

impl Event {
    /// Its place among all events: unique and ascending, with holes where transactions rolled back.
    pub fn global_position(&self) -> i64 {
        self.parts.global_position
    }

    /// The bounded context of its aggregate.
    pub fn bounded_context(&self) -> &str {
        &self.parts.bounded_context
    }

    /// The type of its aggregate.
    pub fn aggregate_type(&self) -> &str {
        &self.parts.aggregate_type
    }

    /// The identifier of its aggregate.
    pub fn aggregate_id(&self) -> &str {
        &self.parts.aggregate_id
    }

    /// Its place among the events of its aggregate, from 1.
    pub fn aggregate_version(&self) -> i64 {
        self.parts.aggregate_version
    }

    /// Its own identifier: unique, and so what to deduplicate by outside the transaction.
    pub fn event_id(&self) -> Uuid {
        self.parts.event_id
    }

    /// What happened.
    pub fn event_type(&self) -> &str {
        &self.parts.event_type
    }

    /// The version of the payload's form.
    pub fn event_version(&self) -> i32 {
        self.parts.event_version
    }

    /// The payload's bytes, in whatever encoding the application chose.
    pub fn payload(&self) -> &[u8] {
        &self.parts.payload
    }

    /// The trace it belongs to.
    pub fn trace_id(&self) -> Option<&str> {
        self.parts.trace_id.as_deref()
    }

    /// What it is correlated with.
    pub fn correlation_id(&self) -> Option<&str> {
        self.parts.correlation_id.as_deref()
    }

    /// What caused it.
    pub fn causation_id(&self) -> Option<&str> {
        self.parts.causation_id.as_deref()
    }

    /// The metadata as JSON text.
    pub fn metadata_json(&self) -> Option<&str> {
        self.parts.metadata.as_deref().map(RawValue::get)
    }

    /// The metadata, parsed on every call.
    pub fn metadata(&self) -> Option<Value> {
        // The server checked it when it was stored, so parsing cannot fail.
        self.metadata_json().and_then(|text| serde_json::from_str(text).ok())
    }

    /// When it was inserted, by the server's clock.
    pub fn created_at(&self) -> SystemTime {
        self.parts.created_at
    }

    pub(crate) fn key(&self) -> i32 {
        self.parts.key
    }

    /// The bytes that count against `batch_bytes`.
    pub(crate) fn weight(&self) -> usize {
        self.parts.payload.len() + self.parts.metadata.as_deref().map_or(0, |metadata| metadata.get().len())
    }
}

/// An event to be appended.
///
/// ```
/// use pupsourcing_orchestrator::NewEvent;
///
/// let event = NewEvent::new("shop", "Order", "order-7", "OrderPlaced", br#"{"total":12}"#.as_slice())
///     .correlation_id("checkout-55")
///     .metadata(serde_json::json!({"user": "u-1"}));
/// ```
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub(crate) bounded_context: String,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) event_id: Uuid,
    pub(crate) event_type: String,
    pub(crate) event_version: i32,
    pub(crate) payload: Vec<u8>,
    pub(crate) trace_id: Option<String>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) causation_id: Option<String>,
    pub(crate) metadata: Option<Value>,
}

impl NewEvent {
    /// An event of an aggregate, with a random event id.
    pub fn new(
        bounded_context: impl Into<String>,
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
        payload: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            bounded_context: bounded_context.into(),
            aggregate_type: aggregate_type.into(),
            aggregate_id: aggregate_id.into(),
            event_id: Uuid::new_v4(),
            event_type: event_type.into(),
            event_version: 1,
            payload: payload.into(),
            trace_id: None,
            correlation_id: None,
            causation_id: None,
            metadata: None,
        }
    }

    /// Its own identifier. Defaults to a random one.
    pub fn event_id(mut self, id: Uuid) -> Self {
        self.event_id = id;
        self
    }

    /// The version of the payload's form. Defaults to 1.
    pub fn event_version(mut self, version: i32) -> Self {
        self.event_version = version;
        self
    }

    /// The trace it belongs to. Defaults to none.
    pub fn trace_id(mut self, id: impl Into<String>) -> Self {
        self.trace_id = Some(id.into());
        self
    }

    /// What it is correlated with. Defaults to nothing.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// What caused it. Defaults to nothing.
    pub fn causation_id(mut self, id: impl Into<String>) -> Self {
        self.causation_id = Some(id.into());
        self
    }

    /// Anything else. Defaults to none.
    pub fn metadata(mut self, metadata: Value) -> Self {
        self.metadata = Some(metadata);
        self
    }
}
