//! What an error of the database client says about the server.

use postgres::error::SqlState;

/// Whether a retry may help although the server is not away.
pub(crate) fn is_transient(error: &postgres::Error) -> bool {
    // Classes: transaction rollback, insufficient resources, operator intervention.
    let passes = |state: &SqlState| ["40", "53", "57"].iter().any(|class| state.code().starts_with(class));
    error.code().is_some_and(|state| passes(state) && *state != SqlState::DATABASE_DROPPED)
}

/// Whether the error says that the server is away.
pub(crate) fn is_away(error: &postgres::Error) -> bool {
    if let Some(state) = error.code() {
        let passes = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::TOO_MANY_CONNECTIONS,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            // Another session has locked a table, and will end its transaction at some time.
            SqlState::LOCK_NOT_AVAILABLE,
        ];
        // Poolers report class 08 when they have no connection to give: PgBouncer, for example,
        // reports `query_wait_timeout` and `max_client_conn` as a protocol violation, 08P01.
        return passes.contains(state) || state.code().starts_with("08");
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            // A TLS handshake that fails is wrapped as invalid data.
            return error.kind() != std::io::ErrorKind::InvalidData;
        }
        cause = error.source();
    }
    error.is_closed()
}

/// Whether the error says that a prepared statement is missing or already exists. The client gives
/// each statement a name of its own, so either means that the connection shares its session.
pub(crate) fn is_of_pooler(error: &postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|state| [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT].contains(state))
}
