//! A pool of connections: r2d2's, with the TLS connector's type erased, errors that keep their cause, and dead connections
//! sorted out.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postgres::error::{DbError, SqlState};
use postgres::tls::{MakeTlsConnect, TlsConnect};
use postgres::{Client, Config, Socket};
use r2d2::{CustomizeConnection, HandleError, ManageConnection, PooledConnection, State};
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

use super::attempt;
use super::in_use::{InUse, Use};
use crate::backoff::Mentions;
use crate::error::{Error, describe, field, one_line};
use crate::threads::caught;

/// A connection from a [`Pool`], or one that belongs to no pool. Dropping it gives it back, or
/// closes it if it is broken or condemned.
pub(crate) struct PooledClient {
    pooled: Box<dyn DerefMut<Target = Pooled> + Send>,
    /// Until it is dropped, what the connection waits for can be cancelled.
    in_use: Option<Use>,
}

impl PooledClient {
    fn new(pooled: Box<dyn DerefMut<Target = Pooled> + Send>) -> Self {
        Self { pooled, in_use: None }
    }

    /// Lets what it waits for be cancelled together with all else that is in use there.
    pub(super) fn used_in(mut self, in_use: &InUse) -> Self {
        self.in_use = Some(in_use.add(self.cancel_token()));
        self
    }

    /// Has the connection closed instead of given back. It may be open and yet of no use to anyone:
    /// it leads to a server that has become a standby, for example.
    pub(crate) fn condemn(&mut self) {
        self.pooled.is_condemned = true;
    }

    /// Why the server has ended the session, if it has told so in a notice. It does so to sessions
    /// that it ends because another backend has crashed.
    pub(crate) fn farewell(&self) -> Option<SqlState> {
        self.pooled.farewell.lock().clone()
    }
}

impl From<Client> for PooledClient {
    fn from(client: Client) -> Self {
        Self::new(Box::new(Box::new(Pooled::new(client, Farewell::default()))))
    }
}

impl Deref for PooledClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.pooled.client
    }
}

impl DerefMut for PooledClient {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.pooled.client
    }
}

/// r2d2 waits at most half of this between two attempts to connect, so a server that comes back is found within half a second.
/// It limits nothing else here: the time that [`Pool::get`] waits is its caller's choice.
const RETRY_LIMIT: Duration = Duration::from_secs(1);
const IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// A connection that lay idle for so long is tried before it is handed out. One that is in steady use is spared the round trip:
/// should it be dead, its user notices.
const TRY_AFTER: Duration = Duration::from_secs(1);
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// How many threads open the pool's connections.
const THREADS: usize = 3;
/// With these the server ends a session for reasons that have nothing to do with what it did.
const FAREWELLS: [SqlState; 2] = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN];

/// How a [`Pool`] is set up.
pub(crate) struct PoolOptions {
    /// The most connections it holds.
    pub(crate) size: u32,
    /// Resets a connection: executed whenever one is handed out, in one round
    /// trip. An error closes the connection, and another attempt follows.
    pub(crate) reset: Option<String>,
}

/// Who receives the server's notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notices {
    /// The pool, which writes them to the log.
    Ours,
    /// The callback of the application's `Config`.
    TheApplications,
}

/// Connections that are opened when needed and used again.
#[derive(Clone)]
pub(crate) struct Pool {
    connections: Arc<dyn Connections>,
    trouble: Arc<Trouble>,
    size: u32,
    in_use: InUse,
}

impl Pool {
    /// A connection, after `timeout` at most. One that was lost while it lay idle is replaced; each such one may take two seconds
    /// beyond the timeout, if the server went away without a word.
    pub(crate) fn get(&self, timeout: Duration) -> Result<PooledClient, Error> {
        let begun = Instant::now();
        if let Some(client) = self.connections.get(timeout) {
            return Ok(client.used_in(&self.in_use));
        }
        Err(self.failed(begun))
    }

    /// Opens all connections that are not open yet, and keeps them for later. After `wait` it keeps
    /// what it has got, and the others are still being opened; the error then counts from `begun`.
    pub(super) fn open_all(&self, begun: Instant, wait: Duration) -> Result<(), Error> {
        let in_use = self.open().saturating_sub(self.idle());
        if self.connections.are_open(self.size.saturating_sub(in_use), Instant::now() + wait) {
            return Ok(());
        }
        Err(self.failed(begun))
    }

    /// Closes the idle connections of a worker that cannot process yet: another worker may need
    /// just these.
    pub(crate) fn close_idle(&self) {
        self.connections.close_idle();
    }

    fn failed(&self, begun: Instant) -> Error {
        Error::Pool {
            size: self.size,
            waited: begun.elapsed(),
            problem: self.trouble.last().unwrap_or_else(|| match self.open() {
                open if open < self.size => "the server has not answered yet".to_owned(),
                _ => "all are in use".to_owned(),
            }),
        }
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// The connections that are open at present.
    pub(crate) fn open(&self) -> u32 {
        self.connections.state().connections
    }

    /// The open connections that are currently idle.
    pub(crate) fn idle(&self) -> u32 {
        self.connections.state().idle_connections
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("size", &self.size)
            .field("open", &self.open())
            .field("idle", &self.idle())
            .finish_non_exhaustive()
    }
}

pub(super) fn open<T>(
    config: Config,
    tls: T,
    notices: Notices,
    options: PoolOptions,
    target: Arc<str>,
    in_use: InUse,
) -> Result<Pool, Error>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let trouble = Arc::new(Trouble { target, last: Mutex::default(), mentions: Mutex::default() });
    let pool = r2d2::Pool::builder()
        .thread_pool(Arc::new(threads()?))
        .max_size(options.size)
        // Its default is max_size: all connections at once, whether needed or not.
        .min_idle(Some(0))
        .test_on_check_out(true)
        .idle_timeout(Some(IDLE_TIMEOUT))
        .max_lifetime(Some(MAX_LIFETIME))
        .connection_timeout(RETRY_LIMIT)
        .connection_customizer(Box::new(Customizer { trouble: trouble.clone() }))
        .error_handler(Box::new(Handler(trouble.clone())))
        // Unlike build(), does not wait for a connection.
        .build_unchecked(Manager { config, tls, notices, reset: options.reset });
    Ok(Pool { connections: Arc::new(pool), trouble, size: options.size, in_use })
}

/// Creates the threads that open connections. Unlike r2d2's own, they end with the pool, and not
/// half a minute later. Each pool has its own: they wait as long as its server keeps them waiting.
fn threads() -> Result<ScheduledThreadPool, Error> {
    let threads = ScheduledThreadPool::builder()
        .num_threads(THREADS)
        .thread_name_pattern("pup-pool-{}")
        .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled);
    // It panics if the system starts no thread.
    caught(|| threads.build())
        .map_err(|message| Error::Spawn { thread: "pup-pool".to_owned(), source: std::io::Error::other(message) })
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{}", describe(.0))]
    Database(#[from] postgres::Error),
    #[error(
        "the database client could not set up a connection: most likely the process has no file descriptor left; raise its \
         limit of open files"
    )]
    NotSetUp,
}

pub(super) fn log_notice(notice: &DbError) {
    log::debug!("notice of the server: {}: {}", notice.severity(), one_line(&notice.message()));
}

/// A connection, with what the pool knows about it.
struct Pooled {
    client: Client,
    /// Since when it has been idle.
    idle_since: Instant,
    is_condemned: bool,
    farewell: Farewell,
}

/// Why the server has ended a session, if it has told so in a notice.
type Farewell = Arc<Mutex<Option<SqlState>>>;

impl Pooled {
    fn new(client: Client, farewell: Farewell) -> Self {
        Self { client, idle_since: Instant::now(), is_condemned: false, farewell }
    }
}

struct Manager<T> {
    config: Config,
    tls: T,
    notices: Notices,
    reset: Option<String>,
}

impl<T> ManageConnection for Manager<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    type Connection = Pooled;
    type Error = Problem;

    fn connect(&self) -> Result<Pooled, Problem> {
        let farewell = Farewell::default();
        let mut config = self.config.clone();
        if self.notices == Notices::Ours {
            let farewell = farewell.clone();
            config.notice_callback(move |notice| {
                log_notice(&notice);
                if FAREWELLS.contains(notice.code()) {
                    *farewell.lock() = Some(notice.code().clone());
                }
            });
        }
        // After a panic, r2d2 would never stop waiting for this connection.
        let client = caught(|| attempt::connect(&config, self.tls.clone())).map_err(|_| Problem::NotSetUp)??;
        Ok(Pooled::new(client, farewell))
    }

    /// Called before a connection is handed out.
    fn is_valid(&self, pooled: &mut Pooled) -> Result<(), Problem> {
        if pooled.idle_since.elapsed() >= TRY_AFTER {
            pooled.client.is_valid(TRY_TIMEOUT)?;
        }
        Ok(self.reset.as_deref().map_or(Ok(()), |reset| pooled.client.batch_execute(reset))?)
    }

    /// Called when a connection comes back.
    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.idle_since = Instant::now();
        pooled.is_condemned || pooled.client.is_closed()
    }
}

/// A connection that is out.
struct Lent<T>(PooledConnection<Manager<T>>)
where
    Manager<T>: ManageConnection<Connection = Pooled>;

impl<T> Deref for Lent<T>
where
    Manager<T>: ManageConnection<Connection = Pooled>,
{
    type Target = Pooled;

    fn deref(&self) -> &Pooled {
        &self.0
    }
}

impl<T> DerefMut for Lent<T>
where
    Manager<T>: ManageConnection<Connection = Pooled>,
{
    fn deref_mut(&mut self) -> &mut Pooled {
        &mut self.0
    }
}

/// An [`r2d2::Pool`] of some type.
trait Connections: Send + Sync {
    fn get(&self, timeout: Duration) -> Option<PooledClient>;
    /// Gets so many at once and gives them back. Returns whether it has got all of them.
    fn are_open(&self, count: u32, deadline: Instant) -> bool;
    fn close_idle(&self);
    fn state(&self) -> State;
}

impl<T> Connections for r2d2::Pool<Manager<T>>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn get(&self, timeout: Duration) -> Option<PooledClient> {
        // The error holds less than what Trouble has kept.
        self.get_timeout(timeout).ok().map(|client| PooledClient::new(Box::new(Lent(client))))
    }

    fn are_open(&self, count: u32, deadline: Instant) -> bool {
        // Also after the deadline each is asked for: the pool then begins to open it.
        let left = || deadline.saturating_duration_since(Instant::now());
        let got: Vec<_> = (0..count).map(|_| self.get_timeout(left())).collect();
        got.iter().all(Result::is_ok)
    }

    fn close_idle(&self) {
        while let Some(mut client) = self.try_get() {
            client.is_condemned = true;
        }
    }

    fn state(&self) -> State {
        self.state()
    }
}

/// Why a connection was last lost or not made, until one is made.
#[derive(Debug)]
struct Trouble {
    target: Arc<str>,
    last: Mutex<Option<String>>,
    /// Attempts follow each other by fractions of a second, on behalf of every connection that is
    /// missing, and fail for changing reasons.
    mentions: Mutex<Mentions>,
}

impl Trouble {
    fn last(&self) -> Option<String> {
        self.last.lock().clone()
    }

    fn keep(&self, problem: &Problem) {
        *self.last.lock() = Some(format!("no connection to {}: {problem}", self.target));
        if self.mentions.lock().is_due() {
            log::warn!(
                "pool has no connection: database={} error={}",
                field(&self.target),
                field(&problem.to_string())
            );
        }
    }
}

#[derive(Debug)]
struct Handler(Arc<Trouble>);

impl HandleError<Problem> for Handler {
    fn handle_error(&self, problem: Problem) {
        self.0.keep(&problem);
    }
}

#[derive(Debug)]
struct Customizer {
    trouble: Arc<Trouble>,
}

impl CustomizeConnection<Pooled, Problem> for Customizer {
    fn on_acquire(&self, _: &mut Pooled) -> Result<(), Problem> {
        *self.trouble.last.lock() = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Database;

    #[test]
    fn a_pool_says_why_it_has_no_connection() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let database = Database::from_url(&format!("postgres://u:secret@127.0.0.1:{port}/d")).unwrap();
        let pool = database.pool(PoolOptions { size: 2, reset: None }).unwrap();
        assert_eq!((pool.size(), pool.open()), (2, 0));
        let error = pool.get(Duration::from_millis(300)).err().unwrap().with_causes();
        assert!(error.contains("of 2 within") && error.contains("127.0.0.1") && error.contains("refused"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
