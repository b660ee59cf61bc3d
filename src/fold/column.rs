//! Values of a state that have a column of their own.

use std::fmt::{self, Display};

use crate::store::folds::FoldColumn;

/// A value of a fold's state that has a column of its own in the [fold](crate::Fold)'s table, for
/// indexes and joins.
///
/// ```
/// use pupsourcing_orchestrator::Column;
///
/// struct Summary {
///     total_cents: i64,
///     customer: Option<String>,
/// }
///
/// let columns = [
///     Column::new("total_cents", "bigint", |summary: &Summary| summary.total_cents),
///     Column::optional("customer", "text", |summary: &Summary| summary.customer.as_ref()),
/// ];
/// ```
pub struct Column<S> {
    name: String,
    sql_type: String,
    value: Value<S>,
}

type Value<S> = Box<dyn Fn(&S) -> Option<String> + Send + Sync>;

impl<S> Column<S> {
    /// A column with a value of each state. The type is any type of PostgreSQL, as in a statement:
    /// `bigint`, `numeric(12,2)`, `timestamptz`. The server converts the value from the text that
    /// its `Display` writes.
    pub fn new<V: Display>(
        name: impl Into<String>,
        sql_type: impl Into<String>,
        value: impl Fn(&S) -> V + Send + Sync + 'static,
    ) -> Self {
        Self::of(name.into(), sql_type.into(), Box::new(move |state| Some(value(state).to_string())))
    }

    /// A column that is NULL for some states. The function returns a reference to a value in the
    /// state, or none.
    pub fn optional<V: Display + ?Sized>(
        name: impl Into<String>,
        sql_type: impl Into<String>,
        value: impl Fn(&S) -> Option<&V> + Send + Sync + 'static,
    ) -> Self {
        Self::of(name.into(), sql_type.into(), Box::new(move |state| value(state).map(ToString::to_string)))
    }

    fn of(name: String, sql_type: String, value: Value<S>) -> Self {
        Self { name, sql_type, value }
    }

    pub(super) fn form(&self) -> FoldColumn {
        FoldColumn { name: self.name.clone(), sql_type: self.sql_type.clone() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn value(&self, state: &S) -> Option<String> {
        (self.value)(state)
    }
}

impl<S> fmt::Debug for Column<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Column").field("name", &self.name).field("sql_type", &self.sql_type).finish_non_exhaustive()
    }
}
