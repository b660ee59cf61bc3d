//! Events inserted with plain SQL, as a writer does that knows nothing of this library.

/// What a column gets unless a caller says otherwise: each event is the first one of an aggregate
/// of its own, so transactions that insert some do not wait for one another.
const USUAL: [(&str, &str); 7] = [
    ("bounded_context", "'test'"),
    ("aggregate_type", "'Thing'"),
    ("aggregate_id", "gen_random_uuid()::text"),
    ("aggregate_version", "1"),
    ("event_id", "gen_random_uuid()"),
    ("event_type", "'Happened'"),
    ("payload", "''"),
];

/// The statement that inserts an event for each row of `rows`, which is what a `FROM` clause takes.
/// `columns` holds the columns that are not as usual, and their expressions. A caller may add
/// `ORDER BY` or `RETURNING`.
pub(crate) fn insert(rows: &str, columns: &[(&str, &str)]) -> String {
    insert_into("events", rows, columns)
}

/// The same for another table of events, or one of its partitions.
pub(crate) fn insert_into(table: &str, rows: &str, columns: &[(&str, &str)]) -> String {
    let usual = USUAL.iter().filter(|(name, _)| columns.iter().all(|(other, _)| other != name));
    let (names, expressions): (Vec<&str>, Vec<&str>) = usual.chain(columns).copied().unzip();
    format!("INSERT INTO {table} ({}) SELECT {} FROM {rows}", names.join(", "), expressions.join(", "))
}

/// One row without columns, for [`insert`].
pub(crate) const ONE: &str = "(SELECT) AS one";
