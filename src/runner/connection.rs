//! A runner's connection: the session in which its handler works, and the statements prepared on
//! it.

use std::time::{Duration, Instant};

use super::failure::Failure;
use crate::context::Context;
use crate::database::Pool;
use crate::feed::{Feed, Mark};
use crate::store::fence::Statements;
use crate::store::session::Session;
use crate::tx::KeptStatements;

/// A runner that is paused for longer takes another connection, which the pool has tested.
pub(super) const KEEP_CONNECTION: Duration = Duration::from_secs(1);
/// How long a runner waits for a connection before it checks for commands again.
const POOL_PATIENCE: Duration = Duration::from_secs(1);

/// A connection, and the statements prepared on it.
pub(super) struct Connection {
    pub(super) session: Session,
    pub(super) statements: Statements,
    /// The statements of the handler.
    pub(super) kept: KeptStatements,
    /// Taken before the connection was opened: if another epoch has begun since, the connection may
    /// lead to the former server.
    pub(super) opened: Mark,
}

impl Connection {
    pub(super) fn open(context: &Context, feed: &Feed, pool: &Pool) -> Result<Self, Failure> {
        let opened = feed.mark();
        let client = context.board.shortage.note(|| pool.get(POOL_PATIENCE)).map_err(Failure::outside)?;
        let mut session = Session::for_handlers(client, context.sessions);
        let prepared = session.transaction_without_policies().and_then(|mut tx| {
            let statements = Statements::prepare(&mut tx, &context.names)?;
            tx.commit().map(|()| statements)
        });
        let statements = prepared.map_err(|error| {
            let failure = Failure::outside(error);
            if failure.condemns() {
                session.condemn();
            }
            failure
        })?;
        Ok(Self { session, statements, kept: KeptStatements::default(), opened })
    }
}

/// The connection that a paused runner keeps for when it resumes, and since when it is kept.
pub(super) struct Kept(Connection, Instant);

impl Kept {
    pub(super) fn new(connection: Connection) -> Self {
        Self(connection, Instant::now())
    }

    /// Returns the connection, if it was in use a moment ago and is not lost.
    pub(super) fn taken_again(self) -> Option<Connection> {
        let Self(connection, since) = self;
        (since.elapsed() < KEEP_CONNECTION && !connection.session.is_closed()).then_some(connection)
    }
}
