//! A pool of connections: r2d2's pool, with the TLS connector's type erased, errors that keep their
//! cause, and dead connections replaced.

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

/// A connection from a [`Pool`], or one that belongs to no pool. Dropping it returns the connection
/// to the pool, or closes it if it is broken or condemned.
pub(crate) struct PooledClient {
    pooled: Box<dyn DerefMut<Target = Pooled> + Send>,
    /// Until this is dropped, the connection's statements can be cancelled.
    in_use: Option<Use>,
}

impl PooledClient {
    fn new(pooled: Box<dyn DerefMut<Target = Pooled> + Send>) -> Self {
        Self { pooled, in_use: None }
    }

    /// Lets the connection's statements be cancelled, together with those of all other connections
    /// in use.
    pub(super) fn used_in(mut self, in_use: &InUse) -> Self {
        self.in_use = Some(in_use.add(self.cancel_token()));
        self
    }

    /// Closes the connection on drop, instead of returning it to the pool. A connection may be open
    /// and yet useless, for example if its server has become a standby.
    pub(crate) fn condemn(&mut self) {
        self.pooled.is_condemned = true;
    }

    /// Returns why the server has ended the session, if a notice said so. The server sends such a
    /// notice to sessions that it ends because another backend has crashed.
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

/// r2d2 waits at most half of this time between two attempts to connect, so it finds a server that
/// is available again within half a second. The time has no other effect here: the caller of
/// [`Pool::get`] chooses how long to wait.
const RETRY_LIMIT: Duration = Duration::from_secs(1);
const IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// A connection that was idle for so long is tested before it is handed out. A connection in steady
/// use is not, which saves a round trip: if it is dead, the next statement fails.
const TRY_AFTER: Duration = Duration::from_secs(1);
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// How many threads open the pool's connections.
const THREADS: usize = 3;
/// The codes with which the server ends a session for reasons unrelated to its statements.
const FAREWELLS: [SqlState; 2] = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN];

/// The options of a [`Pool`].
pub(crate) struct PoolOptions {
    /// The most connections that the pool holds.
    pub(crate) size: u32,
    /// The SQL that resets a connection, executed in one round trip each time a connection is
    /// handed out. An error closes the connection, and the pool tries another one.
    pub(crate) reset: Option<String>,
}

/// The receiver of the server's notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notices {
    /// The pool, which writes them to the log.
    Ours,
    /// The callback of the application's `Config`.
    TheApplications,
}

/// A pool of connections that are opened when needed and reused. Clones share the same pool.
#[derive(Clone)]
pub(crate) struct Pool {
    connections: Arc<dyn Connections>,
    trouble: Arc<Trouble>,
    size: u32,
    in_use: InUse,
}

impl Pool {
    /// Returns a connection, after `timeout` at most. A connection that was lost while it was idle
    /// is replaced. If the server went away silently, each such connection may take two seconds
    /// beyond the timeout.
    pub(crate) fn get(&self, timeout: Duration) -> Result<PooledClient, Error> {
        let begun = Instant::now();
        if let Some(client) = self.connections.get(timeout) {
            return Ok(client.used_in(&self.in_use));
        }
        Err(self.failed(begun))
    }

    /// Opens all connections that are not open yet, and keeps them for later. If some are missing
    /// after `wait`, it returns an error, which counts the time from `begun`; it keeps the
    /// connections that are open, and the pool continues to open the others.
    pub(super) fn open_all(&self, begun: Instant, wait: Duration) -> Result<(), Error> {
        let in_use = self.open().saturating_sub(self.idle());
        if self.connections.are_open(self.size.saturating_sub(in_use), Instant::now() + wait) {
            return Ok(());
        }
        Err(self.failed(begun))
    }

    /// Closes the idle connections of a worker that cannot process yet, because another worker may
    /// need them.
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

    /// The number of connections that are currently open.
    pub(crate) fn open(&self) -> u32 {
        self.connections.state().connections
    }

    /// The number of open connections that are currently idle.
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
        // The default is max_size, which opens all connections at once, whether needed or not.
        .min_idle(Some(0))
        .test_on_check_out(true)
        .idle_timeout(Some(IDLE_TIMEOUT))
        .max_lifetime(Some(MAX_LIFETIME))
        .connection_timeout(RETRY_LIMIT)
        .connection_customizer(Box::new(Customizer { trouble: trouble.clone() }))
        .error_handler(Box::new(Handler(trouble.clone())))
        // Unlike build(), this does not wait for a connection.
        .build_unchecked(Manager { config, tls, notices, reset: options.reset });
    Ok(Pool { connections: Arc::new(pool), trouble, size: options.size, in_use })
}

/// Creates the threads that open connections. Unlike r2d2's own threads, they end with the pool,
/// and not half a minute later. Each pool has threads of its own, because they may wait long for
/// its server.
fn threads() -> Result<ScheduledThreadPool, Error> {
    let threads = ScheduledThreadPool::builder()
        .num_threads(THREADS)
        .thread_name_pattern("pup-pool-{}")
        .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled);
    // `build` panics if the operating system refuses to start a thread.
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
    /// When the connection became idle.
    idle_since: Instant,
    is_condemned: bool,
    farewell: Farewell,
}

/// Why the server has ended a session, if a notice said so.
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

    /// Called when a connection is returned.
    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.idle_since = Instant::now();
        pooled.is_condemned || pooled.client.is_closed()
    }
}

/// A connection that was handed out.
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

/// An [`r2d2::Pool`] with its type erased.
trait Connections: Send + Sync {
    fn get(&self, timeout: Duration) -> Option<PooledClient>;
    /// Takes this many connections at the same time, and returns them to the pool. Returns whether
    /// it got all of them.
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
        // The error says less than what `Trouble` has stored.
        self.get_timeout(timeout).ok().map(|client| PooledClient::new(Box::new(Lent(client))))
    }

    fn are_open(&self, count: u32, deadline: Instant) -> bool {
        // Asks for each connection even after the deadline, so that the pool begins to open it.
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

/// Why the last attempt to get a connection failed, until one succeeds.
#[derive(Debug)]
struct Trouble {
    target: Arc<str>,
    last: Mutex<Option<String>>,
    /// Limits the log lines. Attempts for each missing connection follow each other within
    /// fractions of a second, and fail for changing reasons.
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
