//! A runner's connection: the session in which its handler works, and the statements prepared on it.

use std::time::{Duration, Instant};

use super::retry::Failure;
use crate::database::Pool;
use crate::store::Names;
use crate::store::fence::Statements;
use crate::store::session::{Session, Sessions};

/// A runner that is paused for longer takes another connection, which the pool has tried.
const KEEP_CONNECTION: Duration = Duration::from_secs(1);
/// How long a runner waits for a connection before it looks for commands again.
const POOL_PATIENCE: Duration = Duration::from_secs(1);

/// A connection, and the statements prepared on it.
pub(super) struct Connection {
    pub(super) session: Session,
    pub(super) statements: Statements,
}

impl Connection {
    pub(super) fn open(pool: &Pool, sessions: Sessions, names: &Names) -> Result<Self, Failure> {
        let client = pool.get(POOL_PATIENCE).map_err(|error| Failure::Transient(error.into()))?;
        let mut session = Session::for_handlers(client, sessions);
        let transient = |error: postgres::Error| Failure::Transient(error.into());
        let mut tx = session.transaction_without_policies().map_err(transient)?;
        let statements = Statements::prepare(&mut tx, names).map_err(transient)?;
        tx.commit().map_err(transient)?;
        Ok(Self { session, statements })
    }

    pub(super) fn is_open(&self) -> bool {
        !self.session.is_closed()
    }
}

/// A connection that is kept for the next generation, and since when.
pub(crate) struct Kept(Connection, Instant);

impl Kept {
    pub(super) fn new(connection: Connection) -> Self {
        Self(connection, Instant::now())
    }

    /// The connection, if it was in use a moment ago and is not lost.
    pub(super) fn taken_again(self) -> Option<Connection> {
        let Self(connection, since) = self;
        (since.elapsed() < KEEP_CONNECTION && connection.is_open()).then_some(connection)
    }
}
