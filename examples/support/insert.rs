//! Inserts events with plain SQL, as a writer does that knows nothing about this library.

/// The default value of each column. Each event is the first event of a new aggregate, so
/// transactions that insert events do not wait for one another.
const USUAL: [(&str, &str); 7] = [
    ("bounded_context", "'test'"),
    ("aggregate_type", "'Thing'"),
    ("aggregate_id", "gen_random_uuid()::text"),
    ("aggregate_version", "1"),
    ("event_id", "gen_random_uuid()"),
    ("event_type", "'Happened'"),
    ("payload", "''"),
];

/// Returns a statement that inserts an event for each row of `rows`, which is an item of a `FROM`
/// clause. `columns` has the columns that differ from the defaults, with their expressions. A
/// caller may append `ORDER BY` or `RETURNING`.
pub(crate) fn insert(rows: &str, columns: &[(&str, &str)]) -> String {
    insert_into("events", rows, columns)
}

/// The same for another table of events, or for one of its partitions.
pub(crate) fn insert_into(table: &str, rows: &str, columns: &[(&str, &str)]) -> String {
    let usual = USUAL.iter().filter(|(name, _)| columns.iter().all(|(other, _)| other != name));
    let (names, expressions): (Vec<&str>, Vec<&str>) = usual.chain(columns).copied().unzip();
    format!("INSERT INTO {table} ({}) SELECT {} FROM {rows}", names.join(", "), expressions.join(", "))
}

/// One row without columns, for [`insert`].
pub(crate) const ONE: &str = "(SELECT) AS one";
