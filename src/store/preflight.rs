//! Verifies the server, the schema and the privileges before any thread starts.

use postgres::types::Type;
use postgres::{Client, Transaction};

use super::names::{Names, Own};
use super::registration::Known;
use super::session::{Session, Sessions};
use super::{event_tables, migrations, privileges, sequence};
use crate::error::{Error, describe, field, is_of_pooler};

/// The first version with multiranges is PostgreSQL 14.
const OLDEST_SERVER: i32 = 140_000;

/// What decides whether a server can run this library.
#[derive(Debug)]
pub(crate) struct Version {
    number: i32,
    pub(crate) text: String,
    is_in_recovery: bool,
}

/// Refuses a server that cannot run this library.
pub(crate) fn server(client: &mut Client) -> Result<(), Error> {
    let version = version(client)?;
    version.is_supported()?;
    version.is_primary()
}

/// Asks for the server's version.
pub(crate) fn version(client: &mut Client) -> Result<Version, Error> {
    let row = client
        .query_typed_one(
            "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
                    pg_catalog.current_setting('server_version'), pg_catalog.pg_is_in_recovery()",
            &[],
        )
        .map_err(Error::database("asking for the server's version"))?;
    Ok(Version { number: row.get(0), text: row.get(1), is_in_recovery: row.get(2) })
}

impl Version {
    pub(crate) fn is_supported(&self) -> Result<(), Error> {
        if self.number < OLDEST_SERVER {
            return Err(Error::UnsupportedServer {
                problem: format!("it is PostgreSQL {}, and version 14 or later is needed", self.text),
            });
        }
        Ok(())
    }

    pub(crate) fn is_primary(&self) -> Result<(), Error> {
        if self.is_in_recovery { Err(Error::InRecovery) } else { Ok(()) }
    }
}

/// What to do about a pooler that gives each transaction another session.
const POOLER: &str = "a pooler needs session mode; or transaction mode with heartbeats_only(), if it supports prepared \
                      statements (PgBouncer does since 1.21, with max_prepared_statements above 0)";

/// How long the second connection occupies its session. The pooler may have no other session for
/// the first connection, which then waits this long.
const OCCUPATION: &str = "2s";

/// Refuses a pooler that does not support what the library needs. If this worker relies on sessions
/// of its own, its connections must not share a session. Otherwise a statement that was prepared in
/// one session has to work in another. `other` occupies the session that `one` has just used, if it
/// can get it.
pub(crate) fn pooler(one: &mut Client, other: &mut Client, sessions: Sessions) -> Result<(), Error> {
    match share_a_session(one, other) {
        Ok(false) => Ok(()),
        Ok(true) if sessions == Sessions::Shared => Ok(()),
        Ok(true) => Err(Error::UnsupportedServer {
            problem: format!("behind a pooler, it gives transactions of one connection different sessions: {POOLER}"),
        }),
        Err(error) if is_of_pooler(&error) => Err(Error::UnsupportedServer {
            problem: format!("behind a pooler, it loses prepared statements ({}): {POOLER}", describe(&error)),
        }),
        Err(error) => Err(Error::Database { doing: "examining how sessions are pooled", source: error }),
    }
}

/// How often to look whether two connections share a session. Other clients of the pooler may get
/// in between.
const LOOKS: usize = 4;

/// Returns whether the two connections use the same session in turn, or one of them uses several.
fn share_a_session(one: &mut Client, other: &mut Client) -> Result<bool, postgres::Error> {
    for _ in 0..LOOKS {
        if share_a_session_now(one, other)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn share_a_session_now(one: &mut Client, other: &mut Client) -> Result<bool, postgres::Error> {
    let own_session = one.prepare("SELECT pg_catalog.pg_backend_pid()")?;
    let first: i32 = one.query_one(&own_session, &[])?.get(0);
    other.batch_execute(&format!("BEGIN; SET LOCAL idle_in_transaction_session_timeout = '{OCCUPATION}'"))?;
    let occupied: i32 = other.query_typed_one("SELECT pg_catalog.pg_backend_pid()", &[])?.get(0);
    let second: i32 = one.query_one(&own_session, &[])?.get(0);
    // The server may have ended the transaction already.
    _ = other.batch_execute("ROLLBACK");
    Ok(first != second || first == occupied)
}

/// The schemas in which handlers look for tables, functions and operators: those of the
/// application's search path.
pub(crate) fn path(client: &mut Client) -> Result<Vec<String>, Error> {
    let row = client
        .query_typed_one("SELECT pg_catalog.current_schemas(false)::pg_catalog.text[]", &[])
        .map_err(Error::database("reading the search path"))?;
    Ok(row.get(0))
}

/// A problem that does not stop a worker, but has to be logged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Warning {
    /// Other roles may create functions and operators where handlers look for them.
    WritableSchema { schema: String, roles: String },
    /// The user may not read which positions were handed out.
    UnreadableSequence { sequence: String, user: String },
    /// No sequence hands out the positions.
    NoSequence { table: String },
}

impl Warning {
    pub(crate) fn log(&self, replica_set: &str) {
        match self {
            Self::WritableSchema { schema, roles } => log::warn!(
                "schema on the search path is writable by others: replica_set={replica_set} schema={schema} roles={roles}",
                replica_set = field(&replica_set),
                schema = field(&schema),
                roles = field(&roles)
            ),
            Self::UnreadableSequence { sequence, user } => {
                log::warn!(
                    "last position cannot be read: replica_set={replica_set} sequence={sequence} user={user}",
                    replica_set = field(&replica_set),
                    sequence = field(&sequence),
                    user = field(&user)
                );
            }
            Self::NoSequence { table } => {
                log::warn!(
                    "positions come from no sequence: replica_set={replica_set} table={table}",
                    replica_set = field(&replica_set),
                    table = field(&table)
                );
            }
        }
    }
}

/// Refuses a schema with which this library cannot work, and a user without the privileges.
/// Otherwise returns the warnings. `path` is the application's search path.
pub(crate) fn schema(
    session: &mut Session,
    names: &Names,
    path: &[String],
    projections: &[Known],
) -> Result<Vec<Warning>, Error> {
    let mut tx = session.transaction().map_err(Error::database("verifying the schema"))?;
    migrations::required(&mut tx, names)?;
    privileges::to_work(&mut tx, names)?;
    event_tables::visible(&mut tx, &Own::ALL.map(|own| names.own(own).to_string()))?;
    hash_probe(&mut tx, names)?;
    event_tables::shape(&mut tx, names)?;
    event_tables::positions(&mut tx, names)?;
    scopes(&mut tx, names, projections)?;
    let mut warnings =
        writable_schemas(&mut tx, names, path).map_err(Error::database("reading who may create what"))?;
    warnings
        .extend(sequence_warning(&mut tx, names).map_err(Error::database("reading the sequence of the positions"))?);
    Ok(warnings)
}

/// Refuses scopes by which the table of events cannot be filtered.
pub(super) fn scopes(tx: &mut Transaction<'_>, names: &Names, projections: &[Known]) -> Result<(), Error> {
    match projections.iter().find(|known| known.scope.metadata_object().is_some()) {
        Some(known) => event_tables::metadata_is_jsonb(tx, names, &known.name),
        None => Ok(()),
    }
}

pub(super) fn writable_schemas(
    tx: &mut Transaction<'_>,
    names: &Names,
    path: &[String],
) -> Result<Vec<Warning>, postgres::Error> {
    let rows = tx.query_typed(
        "SELECT n.nspname::text, string_agg(DISTINCT coalesce(r.rolname::text, 'PUBLIC'), ', ')
         FROM pg_namespace n JOIN pg_database d ON d.datname = current_database()
         CROSS JOIN LATERAL (
             SELECT acl.grantee FROM aclexplode(n.nspacl) AS acl WHERE acl.privilege_type = 'CREATE'
             UNION SELECT n.nspowner) AS creator (role)
         LEFT JOIN pg_roles r ON r.oid = creator.role
         WHERE n.nspname = ANY ($1) AND r.rolsuper IS NOT TRUE AND creator.role <> d.datdba
         AND creator.role IS DISTINCT FROM (SELECT relowner FROM pg_class WHERE oid = to_regclass($2))
         AND r.rolname IS DISTINCT FROM current_user AND r.rolname IS DISTINCT FROM 'pg_database_owner'
         GROUP BY 1 ORDER BY 1",
        // The owner of the library's tables is trusted: its triggers would run as the workers.
        &[(&path, Type::TEXT_ARRAY), (&names.migrations().to_string(), Type::TEXT)],
    )?;
    Ok(rows.iter().map(|row| Warning::WritableSchema { schema: row.get(0), roles: row.get(1) }).collect())
}

pub(super) fn sequence_warning(tx: &mut Transaction<'_>, names: &Names) -> Result<Option<Warning>, postgres::Error> {
    Ok(match sequence::find(tx, names)? {
        None => Some(Warning::NoSequence { table: names.events().to_string() }),
        Some(sequence) if !sequence.is_readable => Some(Warning::UnreadableSequence {
            sequence: sequence.name,
            user: tx.query_typed_one("SELECT current_user::text", &[])?.get(0),
        }),
        Some(_) => None,
    })
}

pub(super) fn hash_probe(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
    let sql = names.sql("SELECT count(*) FROM {migrations} WHERE hash_probe <> {hash_probe}");
    let different: i64 =
        tx.query_typed_one(&sql, &[]).map_err(Error::database("comparing the server's hash function"))?.get(0);
    if different == 0 {
        return Ok(());
    }
    Err(Error::UnsupportedServer {
        problem: "its hashtextextended() gives other values than when the schema was created, so the checkpoints' keys no \
                  longer mean the same events: use a database of the same encoding, on a server of the same byte order and \
                  hash function, or rebuild the projections in a new schema"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use postgres::NoTls;

    use super::*;
    use crate::store::testing;

    #[test]
    fn problems_that_do_not_stop_a_worker_are_warnings() {
        let url = testing::database();
        let mut admin = Client::connect(&url, NoTls).unwrap();
        admin.batch_execute(&Names::default().schema_sql()).unwrap();
        admin
            .batch_execute(
                "CREATE ROLE warned LOGIN; CREATE ROLE meddler; CREATE SCHEMA theirs AUTHORIZATION meddler; CREATE SCHEMA unused;
                 REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public, theirs TO warned;
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO warned;
                 GRANT CREATE ON SCHEMA unused TO PUBLIC",
            )
            .unwrap();
        let as_warned = url.replace("postgres@", "warned@");
        let warnings = || {
            let mut client = Client::connect(&as_warned, NoTls).unwrap();
            let path = path(&mut client).unwrap();
            let mut session = Session::of(client, Sessions::Shared).unwrap();
            schema(&mut session, &Names::default(), &path, &[]).unwrap()
        };
        let sequence = "public.events_global_position_seq".to_owned();
        assert_eq!(warnings(), [Warning::UnreadableSequence { sequence, user: "warned".into() }]);
        admin.batch_execute("GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO warned").unwrap();
        assert_eq!(warnings(), []);
        admin.batch_execute("ALTER ROLE warned SET search_path = theirs, public").unwrap();
        admin.batch_execute("GRANT CREATE ON SCHEMA public TO PUBLIC, warned").unwrap();
        let writable =
            |schema: &str, roles: &str| Warning::WritableSchema { schema: schema.into(), roles: roles.into() };
        assert_eq!(warnings(), [writable("public", "PUBLIC"), writable("theirs", "meddler")]);
        admin.batch_execute("ALTER TABLE orchestrator_migrations OWNER TO meddler").unwrap();
        assert_eq!(warnings(), [writable("public", "PUBLIC")], "the owner of the tables is trusted");
        admin.batch_execute("ALTER TABLE orchestrator_migrations OWNER TO CURRENT_USER").unwrap();
        admin
            .batch_execute(
                "ALTER ROLE warned RESET search_path; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
                 ALTER TABLE events ALTER global_position DROP DEFAULT",
            )
            .unwrap();
        assert_eq!(warnings(), [Warning::NoSequence { table: "\"public\".\"events\"".into() }]);
    }

    #[test]
    fn an_old_server_and_a_standby_are_refused() {
        let version = |number, text: &str, is_in_recovery| Version { number, text: text.into(), is_in_recovery };
        // A standby of an old server is refused for its version, too.
        for is_in_recovery in [false, true] {
            let error = version(130_023, "13.23 (Debian 13.23-1)", is_in_recovery).is_supported().unwrap_err();
            let old = error.to_string();
            assert!(old.contains("PostgreSQL 13.23") && old.contains("version 14 or later is needed"), "{old}");
            assert!(!error.is_away());
        }
        assert!(matches!(version(140_000, "14.0", true).is_primary(), Err(Error::InRecovery)));
        version(140_000, "14.0", false).is_supported().unwrap();
        version(140_000, "14.0", false).is_primary().unwrap();
        version(180_001, "18.1", false).is_supported().unwrap();
    }
}
