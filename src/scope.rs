//! Which events a projection wants, and where it begins.

/// Which events a projection wants. The server filters; what is out of scope never leaves it.
///
/// ```
/// use pupsourcing_orchestrator::Scope;
///
/// let scope = Scope::all().aggregate_types(["Order", "Invoice"]).bounded_contexts(["shop"]);
/// assert!(scope.contains("shop", "Order"));
/// assert!(!scope.contains("shop", "Customer"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    pub(crate) aggregate_types: Option<Vec<String>>,
    pub(crate) bounded_contexts: Option<Vec<String>>,
}

impl Scope {
    /// Every event.
    pub fn all() -> Self {
        Self::default()
    }

    /// Only events of these aggregate types. Defaults to every type.
    pub fn aggregate_types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.aggregate_types = Some(types.into_iter().map(Into::into).collect());
        self
    }

    /// Only events of these bounded contexts. Defaults to every context.
    pub fn bounded_contexts(mut self, contexts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.bounded_contexts = Some(contexts.into_iter().map(Into::into).collect());
        self
    }

    /// Whether an event of this context and aggregate type is wanted.
    pub fn contains(&self, bounded_context: &str, aggregate_type: &str) -> bool {
        let among = |list: &Option<Vec<String>>, name: &str| list.as_ref().is_none_or(|l| l.iter().any(|x| x == name));
        among(&self.aggregate_types, aggregate_type) && among(&self.bounded_contexts, bounded_context)
    }
}

/// Where a projection begins that no replica set has run yet. Later starts continue from the
/// checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StartAt {
    /// With the first event there is.
    #[default]
    Beginning,
    /// With the first event whose global position is above the highest visible when the projection is first registered.
    End,
    /// With the first event whose global position is above this one, which may be yet to come.
    Position(i64),
}
