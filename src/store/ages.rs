//! Ages, in SQL. They are by the server's clock.

/// How long ago a timestamp was, in SQL: seconds, to the millisecond.
pub(super) fn age(timestamp: &str) -> String {
    format!("round(extract(epoch FROM clock_timestamp() - {timestamp})::numeric, 3)")
}
