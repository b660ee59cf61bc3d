//! What can go wrong, by what the caller can do about it.
//!
//! Every message names the thing that is wrong and its value, and where there is one, the remedy. No message ever holds a
//! password: connection targets are printed as host, port, database and user only.

mod redaction;

use std::time::Duration;

use postgres::error::SqlState;

pub(crate) use self::redaction::{has_password, redacted};

/// A boxed error of any kind, as handlers return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error of the orchestrator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of bounds or contradicts another one. Correct it; nothing was started.
    #[error("{field} is {value}: {problem}")]
    InvalidConfig {
        /// The setting's name.
        field: String,
        /// The refused value.
        value: String,
        /// Why it is refused, and what would be accepted.
        problem: String,
    },

    /// The database URL cannot be understood. The URL itself is not repeated: it may hold a password.
    #[error("the database URL cannot be used: {problem}")]
    InvalidUrl {
        /// What is wrong with which part.
        problem: String,
    },

    /// A certificate or another part of the TLS set-up cannot be used.
    #[error("TLS cannot be set up: {problem}")]
    Tls {
        /// What is wrong with which file or setting.
        problem: String,
        /// The cause, if another library reported one.
        #[source]
        source: Option<BoxError>,
    },

    /// No connection could be made: the server is away, or it refused the user, the password or the database.
    #[error("cannot connect to {target}: {}", describe(source))]
    Connect {
        /// Host, port, database and user; never the password.
        target: String,
        /// What the server or the network said.
        source: postgres::Error,
    },

    /// The server did not answer in time: it is frozen or overloaded, or is no PostgreSQL server.
    #[error("cannot connect to {target}: no answer within {waited:?}")]
    ConnectTimeout {
        /// Host, port, database and user; never the password.
        target: String,
        /// How long was waited.
        waited: Duration,
    },

    /// The pool had no connection to give within the time allowed.
    #[error("no connection from the pool of {size} within {waited:?}: {problem}")]
    Pool {
        /// The pool's size.
        size: u32,
        /// How long was waited.
        waited: Duration,
        /// What the pool reported.
        problem: String,
    },

    /// A statement failed.
    #[error("{doing} failed: {}", describe(source))]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What the server or the network said.
        source: postgres::Error,
    },

    /// The server cannot run this library: too old, in recovery, or set up in a way that would break a guarantee.
    #[error("this server cannot be used: {problem}")]
    UnsupportedServer {
        /// What is wrong, and the remedy.
        problem: String,
    },

    /// The tables are missing, older or newer than this library expects, not of the expected form, or at odds with one another.
    #[error("the schema cannot be used: {problem}")]
    Schema {
        /// Which table or column is wrong, and the remedy.
        problem: String,
    },

    /// An event cannot be read: it is larger than
    /// [`max_event_bytes`](crate::Builder::max_event_bytes), or the server sends something that is
    /// no event. The projections that want it halt before it.
    #[error("the event at global position {position} cannot be read: {problem}")]
    UnreadableEvent {
        /// Where it is.
        position: i64,
        /// What is wrong with it.
        problem: String,
    },

    /// The database user lacks a privilege.
    #[error("user {user} lacks {privilege} on {object}: grant it, or connect as another user")]
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
    ProjectionClaimed {
        /// The projection's name.
        projection: String,
        /// The replica set that runs it.
        owner: String,
        /// The replica set that wanted it.
        claimant: String,
    },

    /// A projection does not get to the position to which it was to [run](crate::Orchestrator::run_to): it has
    /// halted, on this worker or on another, or it is paused, or its checkpoints were changed by hand.
    #[error("projection {projection:?} {problem}")]
    ProjectionStopped {
        /// The projection's name.
        projection: String,
        /// Why it stands still: the handler's error, for example.
        problem: String,
    },

    /// The HTTP server could not be started.
    #[error("cannot serve HTTP on {address:?}: {source}")]
    Http {
        /// The address asked for.
        address: String,
        /// What the system said.
        #[source]
        source: BoxError,
    },

    /// A metric could not be registered. The registry is unchanged.
    #[error(
        "cannot register metric {metric}: {source}; if the registry has these metrics already, clone their Metrics \
         instead of making another, or drop all its clones first"
    )]
    Metrics {
        /// The metric's name.
        metric: String,
        /// What the registry said.
        source: prometheus::Error,
    },

    /// The metrics could not be written as text.
    #[error("cannot write the metrics as text: {0}")]
    Render(#[source] prometheus::Error),

    /// The system would not start a thread.
    #[error("cannot start thread {thread}: {source}")]
    Spawn {
        /// The thread's name.
        thread: String,
        /// What the system said.
        source: std::io::Error,
    },

    /// A thread of the orchestrator panicked. This is a bug of the library, or of the application's
    /// logger; the worker has stopped.
    #[error("thread {thread} panicked: {message}")]
    ThreadPanicked {
        /// The thread's name.
        thread: String,
        /// The panic's message.
        message: String,
    },

    /// A thread of the worker, in a handler for example, would wait for its own end. The worker was
    /// asked to stop, unless it was only to be waited for; wait on another thread.
    #[error(
        "thread {thread} of the worker cannot wait for the worker's end: ask for it with request_shutdown(), and wait \
         on another thread"
    )]
    OwnThread {
        /// The thread that would wait for itself.
        thread: String,
    },

    /// The worker did not stop in time. Its threads continue; what they commit stays correct.
    #[error("not stopped within {waited:?}: still running are {threads}")]
    ShutdownTimeout {
        /// How long was waited.
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

    /// Whether it says that the server is away, so that waiting may help: it cannot be reached, is starting up or shutting down, has no
    /// connection left, or is not the one that `target_session_attrs` asks for.
    pub(crate) fn is_away(&self) -> bool {
        match self {
            // A pool fills when connections are free.
            Self::ConnectTimeout { .. } | Self::Pool { .. } => true,
            Self::Connect { source, .. } | Self::Database { source, .. } => is_away(source),
            _ => false,
        }
    }

    /// The error of the database client behind this one, if that is where it came from.
    pub fn as_postgres(&self) -> Option<&postgres::Error> {
        match self {
            Self::Connect { source, .. } | Self::Database { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn is_away(error: &postgres::Error) -> bool {
    if let Some(state) = error.code() {
        return [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::TOO_MANY_CONNECTIONS,
            // Another session has locked a table, and will end its transaction at some time.
            SqlState::LOCK_NOT_AVAILABLE,
        ]
        .contains(state);
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

/// The most characters of the server's DETAIL, which may quote whole rows.
const LONGEST_DETAIL: usize = 300;
/// The most characters of an error in a line of the log or in `/status`.
const LONGEST_TEXT: usize = 2000;

/// Whether it says that a prepared statement is missing, or is there already. The client gives each
/// a name of its own, so its connection does not have a session of its own.
pub(crate) fn is_of_pooler(error: &postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|state| [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT].contains(state))
}

/// A database error as a person wants to read it in a log: the server's own words with its code, or
/// the client's with its cause. The detail comes last, where [`without_rows`] cuts it off.
pub(crate) fn describe(error: &postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} ({})", db.message(), db.code().code());
        if is_of_pooler(error) {
            text.push_str("; hint: most likely a pooler in transaction mode does not support prepared statements");
        }
        if let Some(hint) = db.hint() {
            text = format!("{text}; hint: {hint}");
        }
        if let Some(detail) = db.detail() {
            text = format!("{text}; detail: {}", one_line(&shortened(detail, LONGEST_DETAIL)));
        }
        return text;
    }
    with_causes(error)
}

/// An error's text as it may be shown to every client that reaches the status page: without what
/// the server says about the rows concerned.
///
/// Handlers wrap errors in whatever way they like, so the text is what there is to go by. It is cut
/// where a detail or a context begins: as [`describe`] writes it, as the client's `Display` does,
/// and as its `Debug` does, in which an `unwrap` reports it. The server's message stays, although
/// it may quote a single value.
pub(crate) fn without_rows(text: &str) -> String {
    const BEGIN: [&str; 5] = ["; detail: ", "DETAIL:", "CONTEXT:", ", detail: Some(", ", where_: Some("];
    match BEGIN.iter().filter_map(|begin| text.find(begin)).min() {
        Some(end) => format!("{} (the log has the detail)", shortened(text[..end].trim_end(), LONGEST_TEXT)),
        None => shortened(text, LONGEST_TEXT),
    }
}

fn shortened(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// Any error as a person wants to read it: what it is and why, a database error in the server's own words.
pub(crate) fn describe_any(error: &(dyn std::error::Error + 'static)) -> String {
    error.downcast_ref::<postgres::Error>().map_or_else(|| with_causes(error), describe)
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Many errors already hold their cause's words.
        let words = match error.downcast_ref::<postgres::Error>() {
            Some(error) => describe(error),
            None => error.to_string(),
        };
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// For the log, where a line is a line, of bounded length, whatever a handler's error or panic says.
pub(crate) fn one_line(text: &(impl ToString + ?Sized)) -> String {
    shortened(&text.to_string(), LONGEST_TEXT).replace(char::is_control, " ")
}

/// A value as a line of the log has it after `key=`: in quotes if the line could not be taken apart
/// without them.
pub(crate) fn field(value: &(impl ToString + ?Sized)) -> String {
    let text = one_line(value);
    let is_plain = |c: char| !c.is_whitespace() && !['=', '"', '\\'].contains(&c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("{text:?}") }
}

/// The payload of a caught panic as text.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
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
