//! Whether an event is within the scope that a projection has declared, in SQL. The readers of
//! events filter by values that the worker gives; this is for statements about projections that
//! the process itself need not know.

/// Whether the scope of projection `p` contains event `e`; both are aliases of rows.
pub(super) fn contains_sql(p: &str, e: &str) -> String {
    let among =
        |list: &str, column: &str| format!("(NOT {p}.scope ? '{list}' OR {p}.scope -> '{list}' ? {e}.{column})");
    [
        among("bounded_contexts", "bounded_context"),
        among("aggregate_types", "aggregate_type"),
        among("event_types", "event_type"),
        // Not every existing table of events has the column as jsonb.
        format!("(NOT {p}.scope ? 'metadata' OR coalesce({e}.metadata::jsonb @> ({p}.scope -> 'metadata'), false))"),
    ]
    .join(" AND ")
}
