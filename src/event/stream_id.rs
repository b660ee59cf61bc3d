//! The name of an aggregate.

use std::fmt;

/// The name of an aggregate. The events of an aggregate are a stream.
///
/// ```
/// use pupsourcing_orchestrator::StreamId;
///
/// let stream = StreamId::new("shop", "Order", "order-7");
/// assert_eq!(stream.to_string(), "shop/Order/order-7");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    /// The bounded context to which the aggregate belongs.
    pub bounded_context: String,
    /// The aggregate's type.
    pub aggregate_type: String,
    /// The aggregate's identifier, unique within the context and the type.
    pub aggregate_id: String,
}

impl StreamId {
    /// Creates the name of an aggregate.
    pub fn new(
        bounded_context: impl Into<String>,
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
    ) -> Self {
        Self {
            bounded_context: bounded_context.into(),
            aggregate_type: aggregate_type.into(),
            aggregate_id: aggregate_id.into(),
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.bounded_context, self.aggregate_type, self.aggregate_id)
    }
}
