//! The settings on which the library's statements rely, in one place. The library sets them,
//! because a server, a database, a role or a handler may have set something else.
//!
//! Where a worker's connections are sessions of its own, a connection sets them once. Behind a
//! pooler in transaction mode a session serves many clients. There, each transaction sets them for
//! itself and leaves nothing behind.

use std::fmt::Write as _;

use postgres::error::SqlState;
use postgres::{Client, IsolationLevel, Transaction};

use super::locks;
use crate::database::{Database, PooledClient};
use crate::error::Error;
use crate::plan::WorkerId;

/// How long a statement of the library waits for a lock before it is retried, and how long a
/// transaction of the library may be idle before the server ends it. So neither a frozen process
/// nor a long `ALTER TABLE` blocks a thread for longer. It is much shorter than any
/// `stale_worker_timeout`; otherwise a frozen worker could keep the other workers from evicting it.
pub(super) const PATIENCE: &str = "3s";

/// The settings on which every statement of the library relies, by name and value.
///
/// - *Isolation*: a statement has to see what was committed before it got its locks. At a stricter
///   level it sees what was committed before it began to wait, and a table that was rewritten in
///   between seems empty.
/// - *Path*: no function or operator of another role takes the place of the server's own. Tables
///   are qualified everywhere.
/// - *Row security*: an error instead of rows that are silently left out.
/// - *Timeouts*: those of the role are meant for its own statements.
const LIBRARY: &[(&str, &str)] = &[
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("search_path", "pg_catalog, pg_temp"),
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", PATIENCE),
    SILENCE,
    ("idle_session_timeout", "0"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("standard_conforming_strings", "on"),
];

/// The settings of a connection for handlers. All other settings are the application's: its path,
/// its row security, its timeouts. So the library's statements there are written so that none of
/// these changes what they do, see [`fence`](super::fence).
const HANDLERS: &[(&str, &str)] = &[
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("idle_session_timeout", "0"),
];

/// An idle transaction belongs to a frozen process, and would keep its locks.
const SILENCE: (&str, &str) = ("idle_in_transaction_session_timeout", PATIENCE);

/// Exists from PostgreSQL 17 on.
const TRANSACTION_TIMEOUT: &str = "transaction_timeout";

/// Whether a worker's connections are sessions of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// Each connection is one session of this worker alone. Other workers can find it by its locks.
    Own(WorkerId),
    /// A pooler may give each transaction another session, and share sessions between clients.
    Shared,
}

impl Sessions {
    /// The worker, if its sessions are its own.
    pub(crate) fn member(self) -> Option<WorkerId> {
        match self {
            Self::Own(worker) => Some(worker),
            Self::Shared => None,
        }
    }

    /// Resets a connection that other threads have used, except for the statements prepared on it.
    /// One round trip.
    ///
    /// `DISCARD ALL` would drop these as well, so its other parts are executed one by one.
    pub(crate) fn reset_sql(self) -> Option<String> {
        let worker = self.member()?;
        Some(format!(
            "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; DISCARD TEMP; \
             DISCARD SEQUENCES; SELECT pg_catalog.pg_advisory_unlock_all(); \
             SELECT pg_catalog.pg_try_advisory_lock_shared({own}); {settings}",
            own = locks::own(worker),
            settings = statements("SET", HANDLERS)
        ))
    }
}

/// A connection with the settings on which the library relies.
pub(crate) struct Session {
    client: PooledClient,
    sessions: Sessions,
    settings: &'static [(&'static str, &'static str)],
}

impl Session {
    /// Opens a connection for the library's statements.
    pub(crate) fn open(database: &Database, sessions: Sessions) -> Result<Self, Error> {
        Self::new(database.open()?, sessions).map_err(Error::database("setting the session up"))
    }

    /// Takes a connection that has no other user.
    pub(crate) fn of(client: Client, sessions: Sessions) -> Result<Self, Error> {
        Self::new(client.into(), sessions).map_err(Error::database("setting the session up"))
    }

    /// Plans each prepared statement once, if sessions are the worker's own: planning costs more
    /// than executing, and all plans are equally good.
    pub(crate) fn with_generic_plans(mut self) -> Result<Self, Error> {
        if self.sessions.member().is_some() {
            let sql = "SET plan_cache_mode = force_generic_plan";
            self.client.batch_execute(sql).map_err(Error::database("setting the session up"))?;
        }
        Ok(self)
    }

    /// Takes a connection that may come from a pool.
    pub(crate) fn new(mut client: PooledClient, sessions: Sessions) -> Result<Self, postgres::Error> {
        if let Some(worker) = sessions.member() {
            // In the unlikely case that another role has taken this lock, it is an error after the
            // lock timeout.
            client.batch_execute(&format!(
                "{settings}; {without_timeout}; SELECT pg_catalog.pg_advisory_lock_shared({own})",
                settings = statements("SET", LIBRARY),
                without_timeout = without_transaction_timeout(false),
                own = locks::own(worker)
            ))?;
        }
        Ok(Self { client, sessions, settings: LIBRARY })
    }

    /// Takes a connection for statements that the library executes beside a handler. It comes from
    /// a pool, which has [reset](Sessions::reset_sql) it.
    pub(crate) fn for_handlers(client: PooledClient, sessions: Sessions) -> Self {
        Self { client, sessions, settings: HANDLERS }
    }

    /// Opens a connection of its own for such statements.
    pub(crate) fn open_for_handlers(database: &Database, sessions: Sessions) -> Result<Self, Error> {
        let mut client = database.open()?;
        if let Some(sql) = sessions.reset_sql() {
            client.batch_execute(&sql).map_err(Error::database("setting the session up"))?;
        }
        Ok(Self::for_handlers(client, sessions))
    }

    /// Executes statements with the settings on which they rely. Each has a snapshot of its own.
    pub(crate) fn run<T, E: From<postgres::Error>>(
        &mut self,
        statements: impl FnOnce(&mut Client) -> Result<T, E>,
    ) -> Result<T, E> {
        self.enclose(E::from, statements)
    }

    /// Does the same for statements whose error already says what they were doing.
    pub(crate) fn check<T>(
        &mut self,
        doing: &'static str,
        statements: impl FnOnce(&mut Client) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.enclose(|error| Error::database(doing)(error), statements)
    }

    fn enclose<T, E>(
        &mut self,
        wrap: impl Fn(postgres::Error) -> E,
        statements: impl FnOnce(&mut Client) -> Result<T, E>,
    ) -> Result<T, E> {
        if self.sessions != Sessions::Shared {
            return statements(&mut self.client);
        }
        let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {}", self.local_settings());
        if let Err(error) = self.client.batch_execute(&begin) {
            // BEGIN may have succeeded before a setting failed.
            _ = self.client.batch_execute("ROLLBACK");
            return Err(wrap(error));
        }
        let outcome = statements(&mut self.client);
        let ended = self.client.batch_execute(if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" });
        let value = outcome?;
        ended.map_err(wrap)?;
        Ok(value)
    }

    /// Begins a transaction of several statements.
    pub(crate) fn transaction(&mut self) -> Result<Transaction<'_>, postgres::Error> {
        let local = (self.sessions == Sessions::Shared).then(|| self.local_settings());
        let mut tx =
            self.client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false).start()?;
        if let Some(local) = local {
            tx.batch_execute(&local)?;
        }
        Ok(tx)
    }

    /// Begins a transaction that only reads, also on a standby.
    #[cfg(feature = "cli")]
    pub(crate) fn reading(&mut self) -> Result<Transaction<'_>, postgres::Error> {
        let local = (self.sessions == Sessions::Shared).then(|| self.local_settings());
        let mut tx =
            self.client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(true).start()?;
        if let Some(settings) = local {
            tx.batch_execute(&settings)?;
        }
        Ok(tx)
    }

    /// Begins a transaction of the library on a connection for handlers. A policy that hides rows
    /// is an error, and the waiting for a lock is limited as elsewhere.
    pub(crate) fn transaction_without_policies(&mut self) -> Result<Transaction<'_>, postgres::Error> {
        let mut tx = self.transaction()?;
        let settings = [("row_security", "off"), ("lock_timeout", PATIENCE), SILENCE];
        tx.batch_execute(&statements("SET LOCAL", &settings))?;
        Ok(tx)
    }

    /// Begins a transaction of the library on a connection for handlers, with all settings on which
    /// the library's statements rely.
    pub(crate) fn transaction_of_library(&mut self) -> Result<Transaction<'_>, postgres::Error> {
        let mut tx = self.transaction()?;
        let settings = LIBRARY.iter().filter(|(name, _)| !name.starts_with("default_transaction"));
        let settings = statements("SET LOCAL", &settings.copied().collect::<Vec<_>>());
        tx.batch_execute(&format!("{settings}; {}", without_transaction_timeout(true)))?;
        Ok(tx)
    }

    /// The connection itself, for operations that need none of the settings: to prepare statements,
    /// or to listen.
    pub(crate) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Marks the connection to be closed when it is dropped, so that the pool does not hand it out
    /// again.
    pub(crate) fn condemn(&mut self) {
        self.client.condemn();
    }

    /// Why the server has ended the session, if it has said so in a notice.
    pub(crate) fn farewell(&self) -> Option<SqlState> {
        self.client.farewell()
    }

    fn local_settings(&self) -> String {
        // The transaction states its isolation level itself. Other workers cannot find its session
        // to end it, so it must not be idle for long; a batch allows its handler more time.
        let settings = self.settings.iter().filter(|(name, _)| !name.starts_with("default_transaction"));
        let mut local = statements("SET LOCAL", &settings.copied().chain([SILENCE]).collect::<Vec<_>>());
        if std::ptr::eq(self.settings, LIBRARY) {
            _ = write!(local, "; {}", without_transaction_timeout(true));
        }
        local
    }
}

fn statements(set: &str, settings: &[(&str, &str)]) -> String {
    let one = |(name, value): &(&str, &str)| match *name {
        // Its value is a list, not a text.
        "search_path" => format!("{set} {name} = {value}"),
        _ => format!("{set} {name} = '{value}'"),
    };
    settings.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn without_transaction_timeout(is_local: bool) -> String {
    format!(
        "SELECT pg_catalog.set_config('{TRANSACTION_TIMEOUT}', '0', {is_local}) \
         WHERE pg_catalog.current_setting('{TRANSACTION_TIMEOUT}', true) IS NOT NULL"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    /// Every setting of the session.
    fn shown(client: &mut Client) -> Vec<(String, String)> {
        let rows = client.query("SELECT name, setting FROM pg_catalog.pg_settings ORDER BY 1", &[]);
        rows.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    fn value(shown: &[(String, String)], name: &str) -> String {
        shown.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).unwrap().1.clone()
    }

    #[test]
    fn sessions_state_their_settings_and_shared_ones_keep_none() {
        let hostile = "SET default_transaction_isolation = 'serializable'; SET search_path = elsewhere;
                       SET statement_timeout = 10000; SET row_security = on; SET DateStyle = 'German'";
        for sessions in [Sessions::Own(WorkerId(uuid::Uuid::new_v4())), Sessions::Shared] {
            let mut client = testing::connect();
            client.batch_execute(hostile).unwrap();
            let before = shown(&mut client);
            let mut session = Session::of(client, sessions).unwrap();
            let within = session.run(|client| Ok::<_, postgres::Error>(shown(client))).unwrap();
            let in_transaction = {
                let mut tx = session.transaction().unwrap();
                let rows = tx.query("SELECT name, setting FROM pg_catalog.pg_settings", &[]).unwrap();
                rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<_>>()
            };
            for shown in [&within, &in_transaction] {
                assert_eq!(value(shown, "search_path"), "pg_catalog, pg_temp");
                assert_eq!(value(shown, "row_security"), "off");
                assert_eq!(value(shown, "statement_timeout"), "0");
                for timeout in ["lock_timeout", "idle_in_transaction_session_timeout"] {
                    assert_eq!(value(shown, timeout), "3000");
                }
                assert_eq!(value(shown, "transaction_isolation"), "read committed");
                assert!(value(shown, "DateStyle").starts_with("ISO"));
            }
            if sessions == Sessions::Shared {
                assert_eq!(shown(session.client()), before);
            }
        }
    }

    #[test]
    fn a_failure_leaves_no_transaction_open() {
        let mut session = Session::of(testing::connect(), Sessions::Shared).unwrap();
        let failed = session.run(|client| client.batch_execute("SELECT 1 / 0"));
        assert_eq!(failed.unwrap_err().code().unwrap().code(), "22012");
        let outside = session.client().batch_execute("SAVEPOINT somewhere").unwrap_err();
        assert_eq!(outside.code(), Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION));
    }

    #[test]
    fn a_transaction_that_is_silent_keeps_no_lock() {
        let url = testing::database();
        let connect = || Client::connect(&url, postgres::NoTls).unwrap();
        let mut other = connect();
        other.batch_execute("CREATE TABLE public.locked (); SET lock_timeout = '8s'").unwrap();
        let sound = Session::of(connect(), Sessions::Shared).unwrap();
        let beside_handlers = Session::for_handlers(connect().into(), Sessions::Shared);
        for mut frozen in [sound, beside_handlers] {
            let mut silent = frozen.transaction().unwrap();
            silent.batch_execute("LOCK TABLE public.locked").unwrap();
            other.batch_execute("BEGIN; LOCK TABLE public.locked; COMMIT").unwrap();
            assert!(silent.batch_execute("SELECT 1").is_err());
        }
    }
}
