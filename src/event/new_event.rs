//! An event that is to be appended.

use serde_json::Value;
use uuid::Uuid;

/// An event to be appended.
///
/// ```
/// use pupsourcing_orchestrator::NewEvent;
///
/// let event = NewEvent::new("OrderPlaced", br#"{"total":12}"#.as_slice())
///     .correlation_id("checkout-55")
///     .metadata(serde_json::json!({"user": "u-1"}));
/// ```
#[derive(Debug, Clone)]
#[must_use = "the methods return the changed event"]
pub struct NewEvent {
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
    /// Creates an event with a payload in any encoding, and a random event id.
    pub fn new(event_type: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self {
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

    /// The type of the event.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The payload's bytes.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Sets the event's own identifier. Defaults to a random one.
    pub fn event_id(mut self, id: Uuid) -> Self {
        self.event_id = id;
        self
    }

    /// Sets the version of the payload's format. Defaults to 1.
    pub fn event_version(mut self, version: i32) -> Self {
        self.event_version = version;
        self
    }

    /// Sets the trace that the event belongs to. Defaults to none.
    pub fn trace_id(mut self, id: impl Into<String>) -> Self {
        self.trace_id = Some(id.into());
        self
    }

    /// Sets the identifier that correlates the event with others. Defaults to none.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// Sets the identifier of what caused the event. Defaults to none.
    pub fn causation_id(mut self, id: impl Into<String>) -> Self {
        self.causation_id = Some(id.into());
        self
    }

    /// Sets further data about the event. Defaults to none.
    pub fn metadata(mut self, metadata: Value) -> Self {
        self.metadata = Some(metadata);
        self
    }
}
