//! Errors, grouped by what the caller can do about them.
//!
//! Every message names the thing that is wrong and its value, and the remedy if there is one. No
//! message contains a password: connection targets are printed as host, port, database and user
//! only.

mod redaction;
mod server;
mod text;

use std::time::Duration;

pub(crate) use self::redaction::{has_password, redacted};
pub(crate) use self::server::{is_away, is_of_pooler, is_transient};
pub(crate) use self::text::{Shown, describe, describe_any, field, one_line, panic_message, without_rows};

/// A boxed error of any kind. Handlers return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error of the orchestrator.
///
/// Its text does not contain the text of its [source](std::error::Error::source): print the causes
/// too, as `anyhow` does, or use [`with_causes`](Self::with_causes).
///
/// | | what to do |
/// |---|---|
/// | [`is_config`](Self::is_config) | correct the setting that the error names |
/// | [`is_away`](Self::is_away) | wait for the server |
/// | [`is_transient`](Self::is_transient) | retry later; also true if the server is away |
/// | anything else | see the variant; most need an operator |
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of bounds or contradicts another one. Correct it; nothing was started.
    #[error("{field} is {value}: {problem}")]
    #[non_exhaustive]
    InvalidConfig {
        /// The setting's name.
        field: String,
        /// The refused value.
        value: String,
        /// Why it is refused, and what would be accepted.
        problem: String,
    },

    /// The database URL cannot be parsed. The message does not repeat the URL, which may contain a
    /// password.
    #[error("the database URL cannot be used: {problem}")]
    #[non_exhaustive]
    InvalidUrl {
        /// Which part is wrong, and why.
        problem: String,
    },

    /// A certificate or another part of the TLS set-up cannot be used.
    #[error("TLS cannot be set up: {problem}")]
    #[non_exhaustive]
    Tls {
        /// Which file or setting is wrong, and why.
        problem: String,
        /// The cause, if another library reported one.
        #[source]
        source: Option<BoxError>,
    },

    /// No connection could be made: the server cannot be reached, or it refused the user, the
    /// password or the database.
    #[error("cannot connect to {target}")]
    #[non_exhaustive]
    Connect {
        /// Host, port, database and user; never the password.
        target: String,
        /// What the server or the network said.
        source: postgres::Error,
    },

    /// The server did not answer in time: it is frozen or overloaded, or is not a PostgreSQL
    /// server.
    #[error("cannot connect to {target}: no answer within {waited:?}")]
    #[non_exhaustive]
    ConnectTimeout {
        /// Host, port, database and user; never the password.
        target: String,
        /// How long the caller waited.
        waited: Duration,
    },

    /// The database client could not set up a connection: most likely the process may open no more
    /// files.
    #[error(
        "cannot connect to {target}: the database client could not set up a connection: most likely the process has no file \
         descriptor left; raise its limit of open files"
    )]
    #[non_exhaustive]
    ClientSetup {
        /// Host, port, database and user; never the password.
        target: String,
    },

    /// The pool could not provide a connection within the time allowed.
    #[error("no connection from the pool of {size} within {waited:?}: {problem}")]
    #[non_exhaustive]
    Pool {
        /// The pool's size.
        size: u32,
        /// How long the caller waited.
        waited: Duration,
        /// What the pool reported.
        problem: String,
    },

    /// A statement failed.
    #[error("{doing} failed")]
    #[non_exhaustive]
    Database {
        /// The operation that failed.
        doing: &'static str,
        /// What the server or the network said.
        source: postgres::Error,
    },

    /// The server is a standby, which accepts no writes. It may soon be promoted, or the address
    /// may soon lead to another server.
    #[error(
        "this server cannot be used now: it is in recovery (a standby): connect to the primary, where the events are \
         written; with several hosts in the URL, target_session_attrs=read-write finds it"
    )]
    InRecovery,

    /// The library cannot use this server: it is too old, or is set up in a way that would break a
    /// guarantee.
    #[error("this server cannot be used: {problem}")]
    #[non_exhaustive]
    UnsupportedServer {
        /// What is wrong, and the remedy.
        problem: String,
    },

    /// The tables are missing, older or newer than this library expects, not of the expected form,
    /// or inconsistent with one another.
    #[error("the schema cannot be used: {problem}")]
    #[non_exhaustive]
    Schema {
        /// Which table or column is wrong, and the remedy.
        problem: String,
    },

    /// An event cannot be read: it is larger than
    /// [`max_event_bytes`](crate::Builder::max_event_bytes), or what the server sends is not an
    /// event. The projections that have it in their scope halt before it.
    #[error("the event at global position {position} cannot be read: {problem}")]
    #[non_exhaustive]
    UnreadableEvent {
        /// The event's global position.
        position: i64,
        /// What is wrong with the event.
        problem: String,
    },

    /// The database user lacks a privilege.
    #[error("user {user} lacks {privilege} on {object}: grant it, or connect as another user")]
    #[non_exhaustive]
    MissingPrivilege {
        /// The database user.
        user: String,
        /// The missing privilege, as GRANT names it.
        privilege: String,
        /// The table, sequence or schema.
        object: String,
    },

    /// Another live replica set runs a projection of this name.
    #[error(
        "projection {projection:?} belongs to the live replica set {owner:?}, so {claimant:?} cannot run it: give the \
         projection another name, or stop {owner:?} first"
    )]
    #[non_exhaustive]
    ProjectionClaimed {
        /// The projection's name.
        projection: String,
        /// The replica set that runs it.
        owner: String,
        /// The replica set that wanted it.
        claimant: String,
    },

    /// A projection has a higher [version](crate::Projection::version) than its live read model,
    /// and the read model cannot be rebuilt. Nothing was changed.
    #[error(
        "projection {projection:?} has version {version}, its live read model has version {live}, and it cannot be rebuilt: {problem}"
    )]
    #[non_exhaustive]
    CannotRebuild {
        /// The projection's name.
        projection: String,
        /// The version of the program's code.
        version: i32,
        /// The version of the live read model.
        live: i32,
        /// Everything that is in the way, with the remedies.
        problem: String,
    },

    /// A projection does not reach the position to which it was to
    /// [run](crate::Orchestrator::run_to): it has halted on this worker or on another, it is
    /// paused, or its checkpoints were changed by hand.
    #[error("projection {projection:?} {problem}")]
    #[non_exhaustive]
    ProjectionStopped {
        /// The projection's name.
        projection: String,
        /// Why it makes no progress: the handler's error, for example.
        problem: String,
    },

    /// The HTTP server could not be started.
    #[error("cannot serve HTTP on {address:?}")]
    #[non_exhaustive]
    Http {
        /// The requested address.
        address: String,
        /// What the system said.
        #[source]
        source: BoxError,
    },

    /// A metric could not be registered. The registry is unchanged.
    #[error(
        "cannot register metric {metric}; if the registry has these metrics already, clone their Metrics \
         instead of creating another one, or drop all its clones first"
    )]
    #[non_exhaustive]
    Metrics {
        /// The metric's name.
        metric: String,
        /// What the registry said.
        source: prometheus::Error,
    },

    /// The metrics could not be written as text.
    #[error("cannot write the metrics as text")]
    #[non_exhaustive]
    Render {
        /// What the encoder said.
        source: prometheus::Error,
    },

    /// The operating system refused to start a thread.
    #[error("cannot start thread {thread}")]
    #[non_exhaustive]
    Spawn {
        /// The thread's name.
        thread: String,
        /// What the system said.
        source: std::io::Error,
    },

    /// A thread of the orchestrator panicked. This is a bug of the library, or of the application's
    /// logger; the worker has stopped.
    #[error("thread {thread} panicked: {message}")]
    #[non_exhaustive]
    ThreadPanicked {
        /// The thread's name.
        thread: String,
        /// The panic's message.
        message: String,
    },

    /// A thread of the worker, in a handler for example, tried to wait for the worker's end, which
    /// includes its own. The worker was asked to stop. Wait on another thread.
    #[error(
        "thread {thread} of the worker cannot wait for the worker's end: ask for it with request_shutdown(), and wait \
         on another thread"
    )]
    #[non_exhaustive]
    OwnThread {
        /// The thread that would wait for itself.
        thread: String,
    },

    /// The worker did not stop in time. Its threads continue; what they commit stays correct.
    #[error("the worker has not stopped within {waited:?}: these threads still run: {threads}")]
    #[non_exhaustive]
    ShutdownTimeout {
        /// How long the caller waited.
        waited: Duration,
        /// The threads that have not ended.
        threads: String,
    },
}

impl Error {
    pub(crate) fn config(field: impl Into<String>, value: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::InvalidConfig { field: field.into(), value: redacted(&value.into()), problem: problem.into() }
    }

    pub(crate) fn database(doing: &'static str) -> impl FnOnce(postgres::Error) -> Self {
        move |source| Self::Database { doing, source }
    }

    /// Whether the server is away, so that waiting may help: it cannot be reached, is starting up
    /// or shutting down, accepts no writes, has no connection left, or is not the one that
    /// `target_session_attrs` asks for. Also true if this process has no file descriptor left for a
    /// connection.
    ///
    /// ```
    /// use pupsourcing_orchestrator::Database;
    ///
    /// // No server listens on this port.
    /// let error = Database::from_url("postgres://user@127.0.0.1:1/shop")?.connect().unwrap_err();
    /// assert!(error.is_away() && error.is_transient() && !error.is_config());
    /// # Ok::<(), pupsourcing_orchestrator::Error>(())
    /// ```
    pub fn is_away(&self) -> bool {
        match self {
            // A pool gets its connections once the server has free ones.
            Self::ConnectTimeout { .. } | Self::ClientSetup { .. } | Self::Pool { .. } | Self::InRecovery => true,
            Self::Connect { source, .. } | Self::Database { source, .. } => is_away(source),
            _ => false,
        }
    }

    /// Whether the same call may succeed later without any change: the server [is
    /// away](Self::is_away), two transactions conflicted, a statement was cancelled, or the server
    /// lacked a resource such as disk space.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use pupsourcing_orchestrator::{Database, Error};
    /// fn connect(database: &Database) -> Result<(), Error> {
    ///     loop {
    ///         match database.connect() {
    ///             Err(error) if error.is_transient() => {
    ///                 std::thread::sleep(Duration::from_secs(1));
    ///             }
    ///             outcome => return outcome.map(drop),
    ///         }
    ///     }
    /// }
    /// ```
    pub fn is_transient(&self) -> bool {
        self.is_away() || self.as_postgres().is_some_and(is_transient)
    }

    /// Whether a setting of this program is wrong: an option, a name, the database URL, a
    /// certificate, or the address to serve on. Such an error does not go away by itself.
    ///
    /// ```
    /// use pupsourcing_orchestrator::Database;
    ///
    /// let url = "postgres://user@localhost/shop?sslmode=always";
    /// let error = Database::from_url(url).unwrap_err();
    /// assert!(error.is_config() && !error.is_transient());
    /// ```
    pub fn is_config(&self) -> bool {
        matches!(self, Self::InvalidConfig { .. } | Self::InvalidUrl { .. } | Self::Tls { .. } | Self::Http { .. })
    }

    /// Returns the error and its causes in one text, as the library logs it. A database error has
    /// the server's own message.
    ///
    /// ```
    /// use pupsourcing_orchestrator::Database;
    ///
    /// let error = Database::from_url("postgres://user@127.0.0.1:1/shop")?.connect().unwrap_err();
    /// assert_eq!(error.to_string(), "cannot connect to 127.0.0.1:1/shop as user");
    /// assert!(error.with_causes().starts_with("cannot connect to 127.0.0.1:1/shop as user: "));
    /// # Ok::<(), pupsourcing_orchestrator::Error>(())
    /// ```
    pub fn with_causes(&self) -> String {
        describe_any(self)
    }

    /// Returns the error of the database client that caused this one, if there is one.
    pub fn as_postgres(&self) -> Option<&postgres::Error> {
        match self {
            Self::Connect { source, .. } | Self::Database { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Shown for Error {
    fn shown(&self) -> String {
        describe_any(self)
    }
}

#[cfg(test)]
mod tests {
    use super::text::{LONGEST_DETAIL, LONGEST_TEXT};
    use super::*;
    use crate::store::testing;

    #[derive(Debug, thiserror::Error)]
    #[error("the customer cannot be saved")]
    struct Wrapped(#[source] postgres::Error);

    fn refused() -> postgres::Error {
        let mut client = testing::connect();
        let statements = "CREATE TEMP TABLE t (name text PRIMARY KEY); INSERT INTO t VALUES ('secret'), ('secret')";
        client.batch_execute(statements).unwrap_err()
    }

    #[test]
    fn what_is_shown_holds_no_row_however_an_error_was_wrapped() {
        let displayed = refused().as_db_error().unwrap().to_string();
        let panicked = format!("called `Result::unwrap()` on an `Err` value: {:?}", refused());
        let wrapped: [BoxError; 5] = [
            Box::new(refused()),
            Box::new(Wrapped(refused())),
            Box::new(Error::database("saving the customer")(refused())),
            displayed.into(),
            panicked.into(),
        ];
        for error in wrapped {
            let (logged, shown) = (describe_any(&*error), without_rows(&describe_any(&*error)));
            assert!(logged.contains("secret") && logged.contains("duplicate key"), "{logged}");
            assert!(!shown.contains("secret") && shown.contains("duplicate key"), "{shown}");
            assert!(shown.ends_with("(the log has the detail)"), "{shown}");
        }
        assert_eq!(without_rows("no such\ncustomer"), "no such\ncustomer");
    }

    /// As `anyhow` and `eyre` print it.
    fn chain(error: &dyn std::error::Error) -> String {
        let causes = std::iter::successors(Some(error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    #[test]
    fn no_text_repeats_its_source_and_the_log_has_both() {
        let io = || std::io::Error::other("no more threads");
        let metric = || prometheus::Error::Msg("no more names".to_owned());
        for (error, cause) in [
            (Error::Connect { target: "h:1/d as u".into(), source: refused() }, "duplicate key"),
            (Error::database("saving")(refused()), "duplicate key"),
            (Error::Http { address: "a:1".into(), source: io().into() }, "no more threads"),
            (Error::Tls { problem: "no CA".into(), source: Some(io().into()) }, "no more threads"),
            (Error::Spawn { thread: "pup".into(), source: io() }, "no more threads"),
            (Error::Metrics { metric: "m".into(), source: metric() }, "no more names"),
            (Error::Render { source: metric() }, "no more names"),
        ] {
            assert!(!error.to_string().contains(cause), "{error}");
            for shown in [chain(&error), error.with_causes(), field(&error)] {
                assert_eq!(shown.matches(cause).count(), 1, "{shown}");
                assert!(shown.trim_start_matches('"').starts_with(&error.to_string()[..5]), "{shown}");
            }
        }
    }

    #[test]
    fn errors_are_grouped_by_what_the_caller_can_do() {
        let mut client = testing::connect();
        let mut raised = |code: &str| {
            let raise = format!("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$");
            Error::database("testing")(client.batch_execute(&raise).unwrap_err())
        };
        let (problem, address) = (|| "p".to_owned(), || "a".to_owned());
        for (error, is_away, is_transient, is_config) in [
            (Error::config("lanes", "0", "at least 1"), false, false, true),
            (Error::InvalidUrl { problem: problem() }, false, false, true),
            (Error::Tls { problem: problem(), source: None }, false, false, true),
            (Error::Http { address: address(), source: "in use".into() }, false, false, true),
            (Error::ConnectTimeout { target: address(), waited: Duration::ZERO }, true, true, false),
            (Error::Pool { size: 1, waited: Duration::ZERO, problem: problem() }, true, true, false),
            (Error::Schema { problem: problem() }, false, false, false),
            (Error::UnsupportedServer { problem: problem() }, false, false, false),
            (Error::InRecovery, true, true, false),
            // Shutting down, out of connections, locked.
            (raised("57P01"), true, true, false),
            (raised("53300"), true, true, false),
            (raised("55P03"), true, true, false),
            // Serialisation, deadlock, disk, cancelled.
            (raised("40001"), false, true, false),
            (raised("40P01"), false, true, false),
            (raised("53100"), false, true, false),
            (raised("57014"), false, true, false),
            // A database that is gone, privileges, a table, a constraint.
            (raised("57P04"), false, false, false),
            (raised("42501"), false, false, false),
            (raised("42P01"), false, false, false),
            (raised("23505"), false, false, false),
        ] {
            let found = (error.is_away(), error.is_transient(), error.is_config());
            assert_eq!(found, (is_away, is_transient, is_config), "{}", error.with_causes());
        }
    }

    #[test]
    fn only_what_passes_by_itself_counts_as_away() {
        let mut client = testing::connect();
        let mut is_away = |statements: &str| {
            let error = client.batch_execute(statements).unwrap_err();
            let (code, error) = (error.code().cloned(), Error::database("testing")(error));
            (code.unwrap().code().to_owned(), error.is_away())
        };
        let read_only = is_away("BEGIN; SET TRANSACTION READ ONLY; CREATE TABLE t ()");
        assert_eq!(read_only, ("25006".to_owned(), true));
        is_away("COMMIT; SELECT 1 / 0");
        for (code, expected) in [
            ("57P01", true),
            ("53300", true),
            ("55P03", true),
            ("08P01", true),
            ("08006", true),
            ("28P01", false),
            ("3D000", false),
            ("42501", false),
            ("42P01", false),
        ] {
            let raise = format!("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$");
            assert_eq!(is_away(&raise), (code.to_owned(), expected));
        }
        assert!(Error::InRecovery.is_away());
        assert!(!Error::UnsupportedServer { problem: "too old".into() }.is_away());
    }

    #[test]
    fn a_field_has_quotes_where_it_needs_them() {
        for (value, written) in [
            ("main-projections", "main-projections"),
            ("joined", "joined"),
            ("größe", "größe"),
            ("my set", "\"my set\""),
            ("a=b", "\"a=b\""),
            ("say \"hi\"", "\"say \\\"hi\\\"\""),
            ("two\nlines", "\"two lines\""),
            ("", "\"\""),
        ] {
            assert_eq!(field(value), written);
        }
    }

    #[test]
    fn a_long_detail_is_cut_and_stays_on_its_line() {
        let mut client = testing::connect();
        let statement = "DO $$ BEGIN RAISE 'refused' USING DETAIL = E'a\n' || repeat('ä', 5000), HINT = 'less'; END $$";
        let text = describe(&client.batch_execute(statement).unwrap_err());
        assert!(text.starts_with("refused (P0001); hint: less; detail: a ää"), "{text}");
        assert!(text.ends_with("ä …") && text.chars().count() < LONGEST_DETAIL + 50, "{text}");
        let line = one_line(&"ä\n".repeat(5000));
        assert!(line.ends_with(" …") && line.chars().count() == LONGEST_TEXT + 2 && !line.contains('\n'), "{line}");
    }
}
