//! Why a batch did not commit: what caused the failure, by SQLSTATE and by where it happened. Pure.

use std::error::Error as StdError;

use postgres::error::SqlState;
use uuid::Uuid;

use crate::error::{BoxError, Error, describe_any, one_line, without_rows};
use crate::event::{Event, StreamId};
use crate::fold::Overtaken;
use crate::projection::Passing;
use crate::store::fence::EventMark;

/// How much of an error is written to the database.
pub(super) const ERROR_CHARS: usize = 1_000;

/// Why a batch did not commit. The [verdict](super::verdict) decides what to do about it.
#[derive(Debug)]
pub(super) enum Failure {
    /// The row is no longer this worker's, or not at the expected position. Nothing was committed.
    Fenced,
    /// Another transaction was in the way, or the failure happened outside a handler and does not
    /// concern the connection. Nothing was committed.
    Transient(BoxError),
    /// A statement that was kept for the handler is outdated. Nothing was committed.
    Outdated(BoxError),
    /// The connection is lost or unusable, and the events are not the reason. It may be unknown
    /// whether the last commit succeeded.
    Connection(BoxError),
    /// The connection was lost while events were being handled: one of them may be the reason.
    Lost(BoxError),
    /// Something that the events need is missing for now: disk space, memory, a lock, an external
    /// service. Nothing was committed.
    Environment {
        error: BoxError,
        /// How many events from the front of the batch to commit first: their effects outside the
        /// database are not to be repeated until the shortage is over.
        handled: usize,
    },
    /// The handler failed, or the server refused what it did. Nothing was committed.
    Handler {
        error: BoxError,
        /// How many events from the front of the batch to commit first, so that the failing event
        /// is alone.
        handled: usize,
    },
    /// An event cannot be read. Nothing was committed.
    Unreadable(BoxError),
    /// The event at which an aggregate is parked was deleted. Nothing was committed.
    Missing(BoxError),
    /// The attempts at the next event have ended uncleanly too often. The event was not tried.
    Suspected(BoxError),
    /// The event's aggregate was to be parked, but too many are parked already. Nothing was
    /// committed.
    Full(BoxError),
    /// The handler of a rebuild has done what would harm the live read model. Nothing was
    /// committed.
    Trespass(BoxError),
    /// Another attempt would do harm: an operator must act. Nothing was committed.
    Final(BoxError),
}

/// What an SQLSTATE that the server reports is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// The server ends all sessions, or this one because another session demanded it.
    Shutdown,
    /// This connection is no longer usable.
    Connection,
    /// A prepared statement is gone: a pooler has given the transaction another session.
    Prepared,
    /// The server does not accept writes, on this connection.
    ReadOnly,
    /// Another transaction was in the way.
    Conflict,
    /// The server lacks something.
    Shortage,
    /// It took too long.
    Patience,
    /// The statement was wrong.
    Request,
}

impl Subject {
    fn of(state: &SqlState) -> Self {
        match state.code() {
            "57P01" | "57P02" | "57P03" | "57P04" => Self::Shutdown,
            // The last two: a transaction was idle for too long, or took too long.
            "57P05" | "25P03" | "25P04" => Self::Connection,
            "26000" => Self::Prepared,
            // The second one: a standby refuses to begin a transaction that writes.
            "25006" | "0A000" => Self::ReadOnly,
            "40001" | "40P01" => Self::Conflict,
            "57014" | "55P03" => Self::Patience,
            code => match code.get(..2) {
                Some("08") => Self::Connection,
                Some("53" | "58") => Self::Shortage,
                _ => Self::Request,
            },
        }
    }

    /// Whether the session has ended, or is about to.
    fn is_end_of_session(self) -> bool {
        matches!(self, Self::Shutdown | Self::Connection)
    }
}

impl Failure {
    /// A failure of a statement of the library before or after events are handled.
    pub(super) fn outside(error: impl Into<BoxError>) -> Self {
        let error = error.into();
        match postgres_cause(&*error).map(|cause| (cause, cause.code().map(Subject::of))) {
            Some((_, Some(Subject::Conflict | Subject::Patience | Subject::Request))) | None => Self::Transient(error),
            Some((_, Some(Subject::Shortage))) => Self::Environment { error, handled: 0 },
            Some((cause, None)) if !cause.is_closed() && !has_io_cause(cause) => Self::Transient(error),
            Some(_) => Self::Connection(error),
        }
    }

    /// A failure to read the events.
    pub(super) fn of_reading(error: Error) -> Self {
        match error {
            Error::UnreadableEvent { .. } => Self::Unreadable(error.into()),
            error => Self::outside(error),
        }
    }

    /// A failure to read this many events that wait because their aggregate is parked. If the
    /// client cannot read a row, half of them are tried next.
    pub(super) fn of_reading_waiting(error: postgres::Error, events: usize) -> Self {
        if error.code().is_some() || is_connection_lost(&error) {
            return Self::outside(error);
        }
        if events > 1 {
            Self::Handler { error: error.into(), handled: events / 2 }
        } else {
            Self::Unreadable(error.into())
        }
    }

    /// A failure of the handler, after it has handled this many of these events, on a connection
    /// that is still open.
    pub(super) fn of_handler(error: &(dyn StdError + 'static), events: &[Event], handled: usize) -> Self {
        let named = naming(error, events.get(handled));
        let state = postgres_cause(error).and_then(postgres::Error::code);
        match state.map(Subject::of) {
            _ if is_passing(error) => Self::Environment { error: named, handled },
            _ if is_overtaken(error) => Self::Transient(named),
            Some(Subject::Conflict) => Self::Transient(named),
            Some(Subject::Shortage | Subject::Patience) => Self::Environment { error: named, handled },
            // A state about a connection is about another connection, which the handler has opened
            // itself.
            _ => Self::Handler { error: named, handled },
        }
    }

    /// The loss of the connection while the handler was at work.
    pub(super) fn of_lost_handler(error: &(dyn StdError + 'static), events: &[Event], handled: usize) -> Self {
        let named = naming(error, events.get(handled));
        let state = postgres_cause(error).and_then(postgres::Error::code);
        match state.map(Subject::of) {
            Some(Subject::Shutdown) => Self::Connection(named),
            _ => Self::Lost(named),
        }
    }

    /// A failure to move the checkpoint or to commit, after these events were handled. An error
    /// that the server raises only now, by a deferred constraint for example, does not tell which
    /// event caused it. So half of the events are tried next.
    pub(super) fn of_commit(error: &postgres::Error, events: &[Event]) -> Self {
        let subject = error.code().map(Subject::of);
        if error.is_closed() || has_io_cause(error) || subject.is_some_and(Subject::is_end_of_session) {
            return Self::of_lost_handler(error, events, 0);
        }
        match subject {
            // The handler may have dropped the library's own statements (DEALLOCATE ALL).
            Some(Subject::Prepared) => Self::Lost(naming(error, events.first())),
            _ => Self::of_handler(error, events, events.len() / 2),
        }
    }

    /// What the failure becomes if a handler that takes many events at once failed at the first of
    /// these, which it was given together: it is not known which event is the reason. So half of
    /// them are tried next.
    pub(super) fn of_many(self, events: usize) -> Self {
        match self {
            Self::Handler { error, handled: 0 } => Self::Handler { error, handled: events / 2 },
            failure => failure,
        }
    }

    /// What the failure becomes if the event's aggregate cannot be parked because this many others
    /// of the projection are.
    pub(super) fn of_full(&self, parked: u32, projection: &str) -> Self {
        let problem = format!(
            "{}; its aggregate is not parked, because {parked} aggregates of the projection are, as many as on_failure \
             allows: correct the handler, then replay them (worker replay {} --all), or allow more",
            without_rows(&self.describe()),
            word(projection)
        );
        Self::Full(problem.into())
    }

    /// In a rebuild, a handler has used something else than the copies.
    pub(super) fn of_trespass(done: &str) -> Self {
        Self::Trespass(
            format!(
                "while the read model was rebuilt, the handler {done}: it may write only to the tables that tables() names, by \
                 names without a schema, and read them in no other way"
            )
            .into(),
        )
    }

    /// The event at which an aggregate is parked is neither there nor discarded.
    pub(super) fn of_missing(event: EventMark) -> Self {
        let EventMark { position, id } = event;
        let problem = format!(
            "the event at global position {position} (event {id}) is missing: it was deleted although it waits; insert it \
             again with the same position and id, and the later ones of its aggregate that were deleted with it, then replay; \
             if they are lost, rewind the projection to position {}, which clears the read model above it and handles only the \
             events that are left",
            position - 1
        );
        Self::Missing(problem.into())
    }

    /// Whether it may be the consequence of something that has taken the checkpoint away: the
    /// switch of a rebuild exchanges the tables under a handler that waits for a lock.
    pub(super) fn may_come_from_a_lost_row(&self) -> bool {
        matches!(self, Self::Handler { .. } | Self::Environment { .. } | Self::Outdated(_) | Self::Trespass(_))
    }

    /// What the failure becomes if the server has said in a notice why it ended the session:
    /// because it shuts down, or because another backend has crashed.
    pub(super) fn of_bystander(self) -> Self {
        match self {
            Self::Lost(error) => Self::Connection(error),
            failure => failure,
        }
    }

    /// What the failure becomes if a statement that was kept for the handler was outdated. The next
    /// attempt prepares it again.
    pub(super) fn of_outdated(self) -> Self {
        match self {
            Self::Handler { error, .. } => Self::Outdated(error),
            failure => failure,
        }
    }

    /// Whether the connection on which it happened must not be used again.
    pub(super) fn condemns(&self) -> bool {
        matches!(self, Self::Connection(_) | Self::Lost(_))
    }

    /// How to go on after the projection has halted at this event.
    pub(super) fn way_on(&self, projection: &str, event: &Event) -> String {
        match self {
            Self::Full(_) => format!("replay what is parked: worker replay {} --all", word(projection)),
            Self::Trespass(_) => "the rebuild is cancelled".to_owned(),
            Self::Final(_) => "correct the handler and restart the worker".to_owned(),
            _ => format!(
                "it goes on by itself once the handler can process the event; to go on without the event: \
                 {}",
                discard_command(projection, event.event_id())
            ),
        }
    }

    /// How to go on after the replay of an aggregate has failed at this event.
    pub(super) fn way_on_of_replay(&self, projection: &str, stream: &StreamId, event: EventMark) -> String {
        let replay = replay_command(projection, stream);
        match self {
            // A discard does not find it.
            Self::Missing(_) => {
                let (to, projection) = (event.position - 1, word(projection));
                format!(
                    "once the event is restored: {replay}, or if it is lost: worker rewind {projection} --to-position {to} --reason …"
                )
            }
            _ => format!("{replay}, or without the event: {}", discard_command(projection, event.id)),
        }
    }

    /// Describes what went wrong.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Fenced => "the checkpoint belongs to another worker".to_owned(),
            Self::Transient(error)
            | Self::Outdated(error)
            | Self::Connection(error)
            | Self::Lost(error)
            | Self::Unreadable(error)
            | Self::Missing(error)
            | Self::Suspected(error)
            | Self::Full(error)
            | Self::Trespass(error)
            | Self::Final(error)
            | Self::Environment { error, .. }
            | Self::Handler { error, .. } => describe_any(&**error),
        }
    }
}

/// Whether the error of a statement means that its connection is lost.
pub(super) fn is_connection_lost(error: &postgres::Error) -> bool {
    error.is_closed() || has_io_cause(error) || error.code().is_some_and(|state| Subject::of(state).is_end_of_session())
}

/// An event, as messages name it.
fn name(event: &Event) -> String {
    format!(
        "{} of {}/{}/{} at global position {} (event {})",
        event.event_type(),
        event.bounded_context(),
        event.aggregate_type(),
        event.aggregate_id(),
        event.global_position(),
        event.event_id()
    )
}

/// The command that discards an event.
fn discard_command(projection: &str, event: Uuid) -> String {
    format!("worker discard {} --event {event} --reason …", word(projection))
}

/// The command that replays a parked aggregate.
pub(super) fn replay_command(projection: &str, stream: &StreamId) -> String {
    format!("worker replay {} --aggregate {}", word(projection), word(&stream.to_string()))
}

/// A text as one word of a command line.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:@%+,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Says that this many attempts from an event on have ended uncleanly.
pub(super) fn ended_uncleanly(attempts: u32, event: &Event) -> String {
    format!(
        "{attempts} attempts from {} on were interrupted: their connection, their process or the server ended",
        name(event)
    )
}

/// An error as it is written to the database.
pub(super) fn shown(error: &str) -> String {
    one_line(&without_rows(error)).chars().take(ERROR_CHARS).collect()
}

/// The error, with the first of the events that it concerns.
fn naming(error: &(dyn StdError + 'static), event: Option<&Event>) -> BoxError {
    let error = describe_any(error);
    match event {
        Some(event) => format!("from {} on: {error}", name(event)).into(),
        None => error.into(),
    }
}

/// The error itself and its sources.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

fn postgres_cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a postgres::Error> {
    chain(error).find_map(|cause| cause.downcast_ref())
}

fn is_passing(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(<dyn StdError>::is::<Passing>)
}

/// Whether a fold has found that another worker has changed its rows.
fn is_overtaken(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(<dyn StdError>::is::<Overtaken>)
}

/// Whether the network failed. A value that cannot be decoded is an `io::Error` as well.
fn has_io_cause(error: &postgres::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput};
    let io = chain(error).find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| !matches!(io.kind(), InvalidData | InvalidInput))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventParts;
    use crate::store::testing;

    /// The kind of a failure, without what it contains.
    fn kind(failure: &Failure) -> &'static str {
        match failure {
            Failure::Fenced => "fenced",
            Failure::Transient(_) => "transient",
            Failure::Outdated(_) => "outdated",
            Failure::Connection(_) => "connection",
            Failure::Lost(_) => "lost",
            Failure::Environment { .. } => "environment",
            Failure::Handler { .. } => "handler",
            Failure::Unreadable(_) => "unreadable",
            Failure::Missing(_) => "missing",
            Failure::Suspected(_) => "suspected",
            Failure::Full(_) => "full",
            Failure::Trespass(_) => "trespass",
            Failure::Final(_) => "final",
        }
    }

    fn events() -> Vec<Event> {
        let event = |position| EventParts {
            global_position: position,
            bounded_context: "shop".into(),
            aggregate_type: "Order".into(),
            aggregate_id: "order-7".into(),
            event_type: "OrderPlaced".into(),
            ..EventParts::default()
        };
        [7, 9].map(|position| Event::from(event(position))).to_vec()
    }

    #[test]
    fn failures_are_classified_by_state_and_place() {
        let mut client = testing::connect();
        // The state; the failure outside a handler, in a handler while the connection is open, in a
        // handler if the connection is lost, and with the commit.
        for (code, outside, open, lost, commit) in [
            ("08006", "connection", "handler", "lost", "lost"),
            ("57P01", "connection", "handler", "connection", "connection"),
            ("57P02", "connection", "handler", "connection", "connection"),
            ("57P03", "connection", "handler", "connection", "connection"),
            ("25P03", "connection", "handler", "lost", "lost"),
            ("25P04", "connection", "handler", "lost", "lost"),
            ("25006", "connection", "handler", "lost", "handler"),
            ("0A000", "connection", "handler", "lost", "handler"),
            ("26000", "connection", "handler", "lost", "lost"),
            ("40001", "transient", "transient", "lost", "transient"),
            ("40P01", "transient", "transient", "lost", "transient"),
            ("57014", "transient", "environment", "lost", "environment"),
            ("55P03", "transient", "environment", "lost", "environment"),
            ("53100", "environment", "environment", "lost", "environment"),
            ("53200", "environment", "environment", "lost", "environment"),
            ("53300", "environment", "environment", "lost", "environment"),
            ("58030", "environment", "environment", "lost", "environment"),
            ("23505", "transient", "handler", "lost", "handler"),
            ("22P02", "transient", "handler", "lost", "handler"),
            ("42P01", "transient", "handler", "lost", "handler"),
            ("25P02", "transient", "handler", "lost", "handler"),
            ("XX000", "transient", "handler", "lost", "handler"),
        ] {
            let raise = format!("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$");
            let error = client.batch_execute(&raise).unwrap_err();
            let events = events();
            assert_eq!(kind(&Failure::of_handler(&error, &events, 0)), open, "{code} in a handler");
            assert_eq!(kind(&Failure::of_lost_handler(&error, &events, 0)), lost, "{code} with the connection");
            assert_eq!(kind(&Failure::of_commit(&error, &events)), commit, "{code} with the commit");
            assert_eq!(kind(&Failure::outside(error)), outside, "{code} outside");
        }
    }

    #[test]
    fn lost_connections_are_distinguished_from_refused_values() {
        let mut client = testing::connect();
        let row = client.query_one("SELECT 'seven'", &[]).unwrap();
        let mistaken = row.try_get::<_, i32>(0).unwrap_err();
        let events = events();
        assert_eq!(kind(&Failure::of_commit(&mistaken, &events)), "handler", "no attempt will make it a number");
        assert_eq!(kind(&Failure::outside(mistaken)), "transient");
        // A text with a NUL is refused by the client, with an `io::Error`.
        let refused = client.batch_execute("SELECT '\0'").unwrap_err();
        assert!(!is_connection_lost(&refused), "{refused:?}");
        assert_eq!(kind(&Failure::of_handler(&refused, &events, 0)), "handler");

        // The server may report the loss first, then the network, and after that the client.
        let mut lost = client.execute("SELECT pg_terminate_backend(pg_backend_pid())", &[]).unwrap_err();
        for _ in 0..3 {
            assert!(is_connection_lost(&lost), "{lost:?}");
            lost = client.execute("SELECT", &[]).unwrap_err();
        }
        assert!(lost.is_closed() && is_connection_lost(&lost), "{lost:?}");
        assert_eq!(kind(&Failure::of_commit(&lost, &events)), "lost");
        assert_eq!(kind(&Failure::of_commit(&lost, &events).of_bystander()), "connection");

        let nowhere = postgres::Config::new().host("/nobody/listens/here").user("app").connect(postgres::NoTls);
        let refused = nowhere.map(drop).unwrap_err();
        assert!(is_connection_lost(&refused), "{refused:?}");
        let wrapped = Error::database("reading events")(refused);
        assert_eq!(kind(&Failure::of_reading(wrapped)), "connection", "also inside another error");
    }

    #[test]
    fn errors_of_handlers_count_unless_they_are_passing() {
        #[derive(Debug, thiserror::Error)]
        #[error("the mail cannot be sent")]
        struct Mail(#[source] Passing);

        let events = events();
        let away = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let of = |error: &(dyn StdError + 'static)| kind(&Failure::of_handler(error, &events, 1));
        assert_eq!(of(&away()), "handler", "an effect outside PostgreSQL counts as the handler's");
        assert_eq!(of(&Passing::new(away())), "environment");
        assert_eq!(of(&Mail(Passing::new(away()))), "environment");
    }

    #[test]
    fn messages_name_the_event() {
        let error: BoxError = "no such customer".into();
        let failure = Failure::of_handler(&*error, &events(), 1);
        let id = uuid::Uuid::nil();
        assert_eq!(
            failure.describe(),
            format!("from OrderPlaced of shop/Order/order-7 at global position 9 (event {id}) on: no such customer")
        );
        assert!(matches!(failure, Failure::Handler { handled: 1, .. }));
    }
}
