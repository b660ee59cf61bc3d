//! Numbered migrations: each is applied once, under a lock, or printed for another tool.

use postgres::error::SqlState;
use postgres::types::Type;
use postgres::{Client, Row, Transaction};

use super::names::{Names, Own};
use super::session::PATIENCE;
use super::session::{Session, Sessions};
use super::{event_tables, privileges};
use crate::backoff::Mentions;
use crate::error::{Error, field};

/// One step of the schema. A published one is never changed; a new one is added at the end.
struct Migration {
    title: &'static str,
    sql: &'static str,
    /// The lowest schema version whose library works with a schema that has this migration: its own
    /// number if older libraries cannot, a lower one if the migration only adds what they need not
    /// know. So a deployment can be rolled back without a change to the schema.
    works_from: i32,
}

const MIGRATIONS: [Migration; 5] = [
    Migration { title: "event store", sql: include_str!("sql/0001_event_store.sql"), works_from: 1 },
    Migration { title: "coordination", sql: include_str!("sql/0002_coordination.sql"), works_from: 2 },
    Migration { title: "checkpoints", sql: include_str!("sql/0003_checkpoints.sql"), works_from: 3 },
    Migration { title: "append", sql: include_str!("sql/0004_append.sql"), works_from: 4 },
    Migration { title: "commands", sql: include_str!("sql/0005_commands.sql"), works_from: 5 },
];

/// The schema version this library works with.
pub(crate) const VERSION: i32 = 5;

impl Names {
    /// The whole schema as one SQL script, to be applied with another tool. It can be applied
    /// repeatedly.
    ///
    /// ```
    /// let sql = pupsourcing_orchestrator::Names::default().schema_sql();
    /// assert!(sql.contains("CREATE TABLE IF NOT EXISTS"));
    /// ```
    pub fn schema_sql(&self) -> String {
        let migrations = (1..).zip(&MIGRATIONS).map(|(number, migration)| {
            format!("\n-- {number}: {}\n{}", migration.title, step(self, number, migration))
        });
        std::iter::once(preamble(self)).chain(migrations).collect()
    }
}

/// Brings the schema up to date. Any number of processes may do it at once: they take turns. A
/// process whose turn does not come within the lock timeout fails, and logs which session holds the
/// lock, if a log line is due. A schema that is up to date needs no turn, so that no session can
/// keep workers from starting.
pub(crate) fn migrate(client: Client, names: &Names, waits: &mut Mentions) -> Result<(), Error> {
    // Each transaction states the settings on which it relies, because the connection may have been
    // used for something else.
    let doing = "beginning the migration";
    let mut session = Session::of(client, Sessions::Shared)?;
    let mut tx = session.transaction().map_err(Error::database(doing))?;
    if is_up_to_date(&mut tx, names)? {
        return Ok(());
    }
    drop(tx);
    let mut tx = session.transaction().map_err(Error::database(doing))?;
    // The lock's key is derived from the table's name, so that schemas do not wait for one another.
    let table = names.migrations().to_string();
    let locked = tx.execute_typed("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[(&table, Type::TEXT)]);
    if let Err(error) = locked {
        drop(tx);
        if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) && waits.is_due() {
            log_holder(&mut session, names);
        }
        return Err(Error::Database { doing: "waiting for the migration lock", source: error });
    }
    // Another process may have migrated meanwhile. The server has cached for this session that
    // there is no table. The first lock on a relation in this transaction updates that cache.
    tx.batch_execute("SELECT FROM pg_class LIMIT 1").map_err(Error::database(doing))?;
    if is_up_to_date(&mut tx, names)? {
        return Ok(());
    }
    let applied = applied(&mut tx, names)?;
    privileges::to_create(&mut tx, names)?;
    tx.batch_execute(&preamble(names)).map_err(|error| refused("creating the schema", error))?;
    let from = applied.map_or(0, |applied| applied.version);
    for (number, migration) in (1..).zip(&MIGRATIONS).filter(|(number, _)| *number > from) {
        tx.batch_execute(&step(names, number, migration)).map_err(Error::database("applying a migration"))?;
    }
    // Tables that existed before are not changed, so they may be unacceptable.
    event_tables::shape(&mut tx, names)?;
    tx.commit().map_err(Error::database("committing the migration"))?;
    log::info!("migrated: schema={} from={from} to={VERSION}", field(&names.schema_name()));
    Ok(())
}

/// Returns whether the schema has this library's version or a later one. It is an error if the
/// library does not work with the later version, or if the tables are not acceptable.
fn is_up_to_date(tx: &mut Transaction<'_>, names: &Names) -> Result<bool, Error> {
    let Some(applied) = applied(tx, names)?.filter(|applied| applied.version >= VERSION) else { return Ok(false) };
    applied.verify_works()?;
    event_tables::shape(tx, names)?;
    Ok(true)
}

/// Logs which session holds the migration lock, if one still does.
fn log_holder(session: &mut Session, names: &Names) {
    let sql =
        "SELECT l.pid, coalesce(a.usename::text, '') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
               WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended($1, 0)";
    let table = names.migrations().to_string();
    log_holders(names, &session.run(|client| client.query_typed(sql, &[(&table, Type::TEXT)])));
}

fn log_holders(names: &Names, holders: &Result<Vec<Row>, postgres::Error>) {
    for holder in holders.iter().flatten() {
        let (pid, user): (i32, &str) = (holder.get(0), holder.get(1));
        log::warn!(
            "migration waits for another session: schema={} pid={pid} user={user}",
            field(&names.schema_name()),
            user = field(&user)
        );
    }
}

/// The error of a failed preamble. If the preamble itself refused something, its message is the
/// problem.
fn refused(doing: &'static str, error: postgres::Error) -> Error {
    match error.as_db_error().filter(|error| *error.code() == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) {
        Some(refusal) => Error::Schema {
            problem: [Some(refusal.message()), refusal.hint()].into_iter().flatten().collect::<Vec<_>>().join(": "),
        },
        None => Error::Database { doing, source: error },
    }
}

/// The version of the existing schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) version: i32,
    /// The lowest version whose library works with it.
    works_from: i32,
}

impl Applied {
    /// Refuses a schema with which this library does not work: an older one, or a newer one that
    /// does more than add to it.
    pub(crate) fn verify_works(self) -> Result<(), Error> {
        let Self { version, works_from } = self;
        let problem = if version < VERSION {
            format!(
                "it has version {version}, this library needs {VERSION}: migrate it (Orchestrator::migrate(), or the command `migrate` of a worker program), or apply Names::schema_sql()"
            )
        } else if works_from > VERSION {
            format!(
                "it has version {version}, which works with libraries for version {works_from} or later, and this one is for \
                 {VERSION}: upgrade the library of this program"
            )
        } else {
            return Ok(());
        };
        Err(Error::Schema { problem })
    }
}

/// Reads the version of the existing schema, if there is one.
pub(crate) fn applied(tx: &mut Transaction<'_>, names: &Names) -> Result<Option<Applied>, Error> {
    if !privileges::to_read(tx, names)? {
        return Ok(None);
    }
    // A view that another role has created would execute that role's functions.
    let kind = "SELECT relkind::text FROM pg_class WHERE oid = to_regclass($1)";
    let kind = tx
        .query_typed_one(kind, &[(&names.migrations().to_string(), Type::TEXT)])
        .map_err(Error::database("reading the schema's version"))?;
    if kind.get::<_, &str>(0) != "r" {
        return Err(Error::Schema { problem: format!("{} is not a table: drop it", names.migrations()) });
    }
    let row = tx
        .query_typed_one(&names.sql("SELECT max(number), max(works_from) FROM {migrations}"), &[])
        .map_err(Error::database("reading the schema's version"))?;
    let (version, works_from): (Option<i32>, Option<i32>) = (row.get(0), row.get(1));
    Ok(version.zip(works_from).map(|(version, works_from)| Applied { version, works_from }))
}

/// Reads the version of the schema. It is an error if there is none, or if this library does not
/// work with it.
pub(crate) fn required(tx: &mut Transaction<'_>, names: &Names) -> Result<Applied, Error> {
    let Some(applied) = applied(tx, names)? else {
        return Err(Error::Schema {
            problem: format!(
                "there is no table {}: create it with Orchestrator::migrate() or the command `migrate` of a worker program, or apply Names::schema_sql()",
                names.migrations()
            ),
        });
    };
    applied.verify_works()?;
    Ok(applied)
}

/// Waits until no other process executes the application's migration, for as long as that takes,
/// and keeps the others out until the transaction ends. Logs which session it waits for.
///
/// The lock is that of a table on which only workers and the migrating role have privileges, so no
/// stranger can take it. Its mode conflicts with itself, and not with what workers do.
pub(crate) fn begin_turn_of_application(client: &mut Client, names: &Names) -> Result<(), Error> {
    let doing = "waiting for the application's migration in another process";
    // The transaction is idle for as long as the migration takes.
    let begin = names.sql_with(
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0;
         SET LOCAL lock_timeout = '{patience}'; LOCK TABLE {replica_sets} IN SHARE UPDATE EXCLUSIVE MODE",
        &[("patience", &PATIENCE)],
    );
    let mut waits = Mentions::default();
    while let Err(error) = client.batch_execute(&begin) {
        if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
            return Err(Error::Database { doing, source: error });
        }
        client.batch_execute("ROLLBACK").map_err(Error::database(doing))?;
        if waits.is_due() {
            let sql = "SELECT l.pid, coalesce(a.usename::text, '')
                       FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
                       WHERE l.mode = 'ShareUpdateExclusiveLock' AND l.granted AND l.relation = pg_catalog.to_regclass($1)
                       AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";
            let table = names.own(Own::ReplicaSets).to_string();
            log_holders(names, &client.query_typed(sql, &[(&table, Type::TEXT)]));
        }
    }
    Ok(())
}

fn preamble(names: &Names) -> String {
    let mut own: Vec<String> =
        Own::ALL.iter().map(|own| format!("pg_catalog.to_regclass('{}')", names.own(*own))).collect();
    own.sort();
    names.sql_with(include_str!("sql/0000_preamble.sql"), &[("own_tables", &own.join(", "))])
}

fn step(names: &Names, number: i32, migration: &Migration) -> String {
    let applied = "INSERT INTO {migrations} (number, works_from, hash_probe)
VALUES ({number}, {works_from}, {hash_probe}) ON CONFLICT DO NOTHING;
";
    names.sql(migration.sql) + &names.sql_with(applied, &[("number", &number), ("works_from", &migration.works_from)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::template;

    #[test]
    fn the_version_is_the_number_of_migrations() {
        assert_eq!(usize::try_from(VERSION).unwrap(), MIGRATIONS.len());
    }

    #[test]
    fn a_migration_works_from_its_own_version_or_an_earlier_one() {
        for (number, migration) in (1..).zip(&MIGRATIONS) {
            assert!((1..=number).contains(&migration.works_from), "{number}: {}", migration.title);
        }
    }

    #[test]
    fn every_placeholder_is_filled() {
        let sql = Names::default().schema("s").schema_sql();
        let left: Vec<&str> = sql.split('{').skip(1).filter_map(template::word).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
