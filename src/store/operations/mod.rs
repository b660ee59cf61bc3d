//! What operators do and see: they record commands, read their outcomes, and list projections,
//! commands and parked aggregates. [`record`] is the only statement that writes.
//!
//! The connection is the operator's own, with any settings. So each function begins a transaction,
//! or a savepoint if there is one already, and states what its statements rely on.

mod reading;
mod records;
#[cfg(test)]
pub(crate) mod testing;

use postgres::types::{Json, Type};
use postgres::{Client, GenericClient, IsolationLevel};
use serde_json::Value;

use self::reading::{SETTINGS, reading};
pub use self::records::{CommandRecord, ParkedRecord, ProjectionRecord};
pub(crate) use self::records::{history, parked, projections};
use super::locks::IS_ADVISORY;
use super::names::Names;

/// A command, as the function that records it takes it.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) projection: &'a str,
    pub(crate) command: &'a str,
    pub(crate) arguments: &'a Value,
    /// `None` stands for the database user.
    pub(crate) by: Option<&'a str>,
    pub(crate) reason: Option<&'a str>,
}

/// Records a command, and returns its number. The function of the schema refuses it, with an error
/// that says why, if that needs no knowledge of the projection's state.
pub(crate) fn record(client: &mut Client, names: &Names, request: &Request<'_>) -> Result<i64, postgres::Error> {
    let mut tx = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false).start()?;
    tx.batch_execute(SETTINGS)?;
    let sql = names.sql("SELECT {command}($1, $2, $3, coalesce($4, current_user::text), $5)");
    let row = tx.query_typed_one(
        &sql,
        &[
            (&request.projection, Type::TEXT),
            (&request.command, Type::TEXT),
            (&Json(request.arguments), Type::JSONB),
            (&request.by, Type::TEXT),
            (&request.reason, Type::TEXT),
        ],
    )?;
    let number = row.try_get(0)?;
    tx.commit()?;
    Ok(number)
}

/// How far a command is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Progress {
    /// `None` until the command is applied.
    pub(crate) outcome: Option<String>,
    pub(crate) result: Option<Value>,
    pub(crate) error: Option<String>,
    /// The current step of a command that is executed in steps.
    pub(crate) step: Option<String>,
}

/// Reads how far a command is; `None` if there is no such command. This is executed often, so
/// it is one statement, which is correct with any search path.
pub(crate) fn progress(
    client: &mut impl GenericClient,
    names: &Names,
    number: i64,
) -> Result<Option<Progress>, postgres::Error> {
    let sql = names.sql("SELECT outcome, result, error, step FROM {commands} WHERE id OPERATOR(pg_catalog.=) $1");
    let rows = client.query_typed(&sql, &[(&number, Type::INT8)])?;
    rows.first()
        .map(|row| {
            Ok(Progress {
                outcome: row.try_get(0)?,
                result: row.try_get::<_, Option<Json<Value>>>(1)?.map(|json| json.0),
                error: row.try_get(2)?,
                step: row.try_get(3)?,
            })
        })
        .transpose()
}

/// The names of all projections, each with its replica set.
pub(crate) fn known(client: &mut impl GenericClient, names: &Names) -> Result<Vec<(String, String)>, postgres::Error> {
    let mut tx = reading(client)?;
    let rows = tx.query_typed(&names.sql("SELECT name, replica_set FROM {projections} ORDER BY name"), &[])?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The workers of a replica set that could apply a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workers {
    /// How many have registered, and have not been recorded as stopped.
    pub(crate) registered: i64,
    /// How many of them are connected. Behind a pooler in transaction mode it is not known, so
    /// each one counts.
    pub(crate) connected: i64,
}

/// Counts the workers of a replica set.
pub(crate) fn workers(
    client: &mut impl GenericClient,
    names: &Names,
    replica_set: &str,
) -> Result<Workers, postgres::Error> {
    let sql = names.sql_with(
        "SELECT count(*), count(*) FILTER (WHERE w.session_class IS NULL OR (w.session_class::oid, w.session_pid) IN (
                    SELECT l.classid, l.pid FROM pg_locks l WHERE {is_advisory}))
         FROM {workers} w WHERE w.replica_set = $1 AND w.state <> 'stopped'",
        &[("is_advisory", &IS_ADVISORY)],
    );
    let row = reading(client)?.query_typed_one(&sql, &[(&replica_set, Type::TEXT)])?;
    Ok(Workers { registered: row.try_get(0)?, connected: row.try_get(1)? })
}

/// The name of the database user.
#[cfg(feature = "cli")]
pub(crate) fn user(client: &mut impl GenericClient) -> Result<String, postgres::Error> {
    client.query_typed_one("SELECT current_user::pg_catalog.text", &[])?.try_get(0)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;
    use crate::store::testing;

    #[test]
    fn settings_of_the_operator_do_not_matter_and_are_kept() {
        let mut client = testing::connect_with_projection();
        let names = Names::default();
        // An operator of the same name that is always wrong.
        client
            .batch_execute(
                "CREATE SCHEMA theirs;
                 CREATE FUNCTION theirs.never(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
                 CREATE OPERATOR theirs.= (LEFTARG = text, RIGHTARG = text, FUNCTION = theirs.never);
                 CREATE FUNCTION theirs.never(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false';
                 CREATE OPERATOR theirs.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = theirs.never);
                 SET search_path = theirs, pg_catalog; SET default_transaction_isolation = serializable;
                 SET default_transaction_read_only = on",
            )
            .unwrap();
        let arguments = json!({});
        let pause = Request { projection: "p", command: "pause", arguments: &arguments, by: None, reason: None };
        let number = record(&mut client, &names, &pause).unwrap();
        let mut tx = client.transaction().unwrap();
        let found = progress(&mut tx, &names, number).unwrap();
        assert_eq!(found, Some(Progress { outcome: None, result: None, error: None, step: None }));
        assert_eq!(known(&mut tx, &names).unwrap(), [("p".to_owned(), "set".to_owned())]);
        assert_eq!(workers(&mut tx, &names, "set").unwrap(), Workers { registered: 0, connected: 0 });
        assert_eq!(history(&mut tx, &names, None, Some("p"), 10).unwrap().len(), 1);
        assert_eq!(projections(&mut tx, &names, Some("set"), &Mutex::default()).unwrap().len(), 1);
        assert_eq!(tx.query_one("SHOW search_path", &[]).unwrap().get::<_, String>(0), "theirs, pg_catalog");
    }
}
