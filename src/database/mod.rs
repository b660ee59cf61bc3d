//! The database, and how to connect to it: with a separate connection, or with one from a pool.
//!
//! Connections have limits that detect a server that went away silently: see [`Database`]. The type
//! of the TLS connector is erased in this module, so no other module is generic over it.

mod attempt;
mod connection;
mod filling;
mod in_use;
mod limits;
mod parameters;
mod pool;
mod ssl;
mod target;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "without_tls.rs"]
mod tls;
mod url;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use postgres::tls::{MakeTlsConnect, TlsConnect};
use postgres::{CancelToken, Client, Config, NoTls, Socket};

pub(crate) use self::connection::sealed;
pub use self::connection::{AsClient, Connection};
pub(crate) use self::filling::Filling;
use self::in_use::InUse;
use self::pool::Notices;
pub(crate) use self::pool::{Pool, PoolOptions, PooledClient};
use crate::error::Error;
use crate::threads::caught;

/// The idle time that the `postgres` crate uses if none was set. Its getter does not tell whether
/// one was set.
const CRATE_KEEPALIVES_IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// The most bytes of an application name. The server truncates longer names.
const APPLICATION_NAME_BYTES: usize = 63;

/// The most attempts to connect that were given up and have not ended. At this number, no further
/// attempt is begun.
const ABANDONED_ATTEMPTS: u32 = 64;

/// A database, and how to connect to it.
///
/// These limits detect a server that went away silently. The URL or the `Config` may set other
/// values:
///
/// | parameter | default |
/// |---|---|
/// | `connect_timeout` | 5 s for each address, 5 s more for the first answer (0: no limit) |
/// | `keepalives_idle`, `keepalives_interval`, `keepalives_retries` | 5 s, 2 s, 3 |
/// | `tcp_user_timeout` | 10 s (in milliseconds in a URL, as in libpq) |
///
/// Its `Debug` output has host, port, database and user, but never the password.
#[derive(Clone)]
pub struct Database {
    connector: Arc<dyn Connect>,
    target: Arc<str>,
    abandoned: Arc<AtomicU32>,
    in_use: InUse,
}

impl Database {
    /// Reads a [libpq
    /// URL](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING)
    /// (`postgres://` or `postgresql://`) or a `name=value` string. It does not connect, but it
    /// reads the certificate files. They are read again for each connection, so they may be
    /// replaced.
    ///
    /// Parameters: `host`, `hostaddr`, `port` (lists too), `user`, `password`, `dbname`, `options`,
    /// `application_name`, `fallback_application_name`, `connect_timeout`, `tcp_user_timeout`,
    /// `keepalives`, `keepalives_idle`, `keepalives_interval`, `keepalives_count`,
    /// `target_session_attrs` (any, read-write, read-only, primary), `load_balance_hosts`,
    /// `channel_binding`, `sslnegotiation`, and for TLS:
    ///
    /// | `sslmode` | TLS | the server's certificate |
    /// |---|---|---|
    /// | `disable` | never | |
    /// | `prefer` (default) | if the server offers it | as `verify-ca` if `sslrootcert` is given |
    /// | `require` | always | as `verify-ca` if there is a CA file |
    /// | `verify-ca` | always | must come from a trusted CA |
    /// | `verify-full` | always | must come from a trusted CA and name this host |
    ///
    /// The name of the host is compared only with the certificate's alternative names.
    /// `sslrootcert` is the PEM file with the trusted CAs; it defaults to `~/.postgresql/root.crt`.
    /// The value `system` means the CAs that the operating system trusts; with it, `verify-full` is
    /// the default and the only mode. `sslcert` and `sslkey` (PEM) are the client's own certificate
    /// and key. As in libpq, a key that the group or others can read is refused (0640 is allowed if
    /// root owns it). Without the feature `tls`, `prefer` never uses TLS, and the modes below it
    /// are refused. Connections through a Unix socket never use TLS. Unlike libpq, the library
    /// reads neither environment variables nor password and service files.
    ///
    /// Use `sslmode=require` or stronger if there is a network between worker and server. With
    /// `prefer`, an attacker in the network can claim that the server has no TLS and ask for the
    /// password in clear text, and the database client sends it. The client has no setting to
    /// refuse this, so libpq's `require_auth` is not supported. `channel_binding=require` refuses
    /// it.
    ///
    /// Notices of the server are logged at the level `debug`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUrl`] names the part or parameter that is malformed, unknown or not
    /// supported. [`Error::Tls`] names the file that cannot be used. Neither contains the password.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        let parsed = url::parse(url)?;
        let (mut config, notices) = (parsed.config, Notices::Ours);
        config.notice_callback(|notice| pool::log_notice(&notice));
        Ok(match tls::connector(&parsed.tls)? {
            Some(tls) => Self::new(Connector { config, tls, notices }),
            None => Self::new(Connector { config, tls: NoTls, notices }),
        })
    }

    /// Creates a database from a `postgres::Config` and the application's own TLS connector, or
    /// [`postgres::NoTls`].
    ///
    /// Everything that the `Config` sets is kept. Exception: a `keepalives_idle` of two hours, the
    /// default of the `postgres` crate, counts as not set, because the `Config` does not tell
    /// whether it was set.
    pub fn with_connector<T>(mut config: Config, tls: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send,
        T::Stream: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let was = config.clone();
        limits::fill(&mut config, |name| match name {
            "connect_timeout" => was.get_connect_timeout().is_some(),
            "tcp_user_timeout" => was.get_tcp_user_timeout().is_some(),
            "keepalives_idle" => was.get_keepalives_idle() != CRATE_KEEPALIVES_IDLE,
            "keepalives_interval" => was.get_keepalives_interval().is_some(),
            _ => was.get_keepalives_retries().is_some(),
        });
        Self::new(Connector { config, tls, notices: Notices::TheApplications })
    }

    fn new(connector: impl Connect + 'static) -> Self {
        let target = target::describe(connector.config()).into();
        Self { connector: Arc::new(connector), target, abandoned: Arc::default(), in_use: InUse::default() }
    }

    /// Opens a connection. It blocks, but may be called on any thread, including a thread of an
    /// asynchronous runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] or [`Error::ConnectTimeout`]: both name the target, and what the server
    /// or the network reported.
    pub fn connect(&self) -> Result<Connection, Error> {
        self.client().map(Connection::new)
    }

    /// Opens a connection for a thread that does not belong to a runtime.
    pub(crate) fn client(&self) -> Result<Client, Error> {
        // connect_timeout covers only the opening of the socket, and the kernel of a frozen server
        // continues to open sockets. The attempt itself cannot be interrupted, so it runs on a
        // thread that can be left behind. The attempt ends when the server resumes or goes away, or
        // when the pooler has a session for it or refuses it.
        let limit = attempt::limit(self.connector.config());
        let timed_out =
            || Error::ConnectTimeout { target: self.target.to_string(), waited: limit.unwrap_or(Duration::MAX) };
        if limit.is_some() && self.abandoned.load(Ordering::Relaxed) >= ABANDONED_ATTEMPTS {
            return Err(timed_out());
        }
        // The channel has no buffer, so a connection that is not received is closed by the thread
        // that opened it.
        let (sender, receiver) = bounded(0);
        let (connector, abandoned) = (self.connector.clone(), self.abandoned.clone());
        let name = "pup-connect";
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if sender.send(caught(|| connector.connect())).is_err() {
                    abandoned.fetch_sub(1, Ordering::Relaxed);
                }
            })
            .map_err(|source| Error::Spawn { thread: name.to_owned(), source })?;
        match receiver.recv_timeout(limit.unwrap_or(Duration::MAX)) {
            Ok(Ok(outcome)) => outcome.map_err(|source| Error::Connect { target: self.target.to_string(), source }),
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                Err(Error::ClientSetup { target: self.target.to_string() })
            }
            Err(RecvTimeoutError::Timeout) => {
                // Counted before the receiver is dropped, so before the thread can subtract it.
                self.abandoned.fetch_add(1, Ordering::Relaxed);
                Err(timed_out())
            }
        }
    }

    /// Opens a connection whose statements [`cancel_all`](Self::cancel_all) cancels.
    pub(crate) fn open(&self) -> Result<PooledClient, Error> {
        Ok(PooledClient::from(self.client()?).used_in(&self.in_use))
    }

    /// Asks the server to cancel the statements of all connections that were [opened](Self::open)
    /// here or taken from a pool. Blocks until the server answers, which a frozen server does not.
    pub(crate) fn cancel_all(&self) {
        for token in self.in_use.tokens() {
            // If the server cannot be reached, the connection will be lost as well.
            _ = self.connector.cancel(&token);
        }
    }

    /// Returns the same database for one worker. Its connections are tracked separately, and have
    /// this application name unless the URL or the `Config` sets one. The server keeps 63 bytes.
    pub(crate) fn for_worker(&self, name: &str) -> Self {
        let own = Self { in_use: InUse::default(), ..self.clone() };
        if self.connector.config().get_application_name().is_some() {
            return own;
        }
        let longest = (0..=name.len().min(APPLICATION_NAME_BYTES)).rev().find(|end| name.is_char_boundary(*end));
        let name = &name[..longest.unwrap_or(0)];
        Self { connector: self.connector.with_application_name(name), ..own }
    }

    /// Returns `host:port/database as user`, for the log and for errors.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// Returns `host:port/database`, the same for all users.
    pub(crate) fn place(&self) -> String {
        target::place(self.connector.config())
    }

    /// Creates a pool of connections. It opens none until the first [`Pool::get`].
    pub(crate) fn pool(&self, options: PoolOptions) -> Result<Pool, Error> {
        if options.size == 0 {
            return Err(Error::config("pool_size", "0", "at least one connection is needed"));
        }
        self.connector.pool(options, self.target.clone(), self.in_use.clone())
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("target", &self.target).finish_non_exhaustive()
    }
}

/// A [`Connector`] with its type erased.
trait Connect: Send + Sync {
    fn config(&self) -> &Config;
    fn connect(&self) -> Result<Client, postgres::Error>;
    fn with_application_name(&self, name: &str) -> Arc<dyn Connect>;
    fn pool(&self, options: PoolOptions, target: Arc<str>, in_use: InUse) -> Result<Pool, Error>;
    fn cancel(&self, token: &CancelToken) -> Result<(), postgres::Error>;
}

#[derive(Clone)]
struct Connector<T> {
    config: Config,
    tls: T,
    notices: Notices,
}

impl<T> Connect for Connector<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn config(&self) -> &Config {
        &self.config
    }

    fn connect(&self) -> Result<Client, postgres::Error> {
        attempt::connect(&self.config, self.tls.clone())
    }

    fn with_application_name(&self, name: &str) -> Arc<dyn Connect> {
        let mut named = self.clone();
        named.config.application_name(name);
        Arc::new(named)
    }

    fn pool(&self, options: PoolOptions, target: Arc<str>, in_use: InUse) -> Result<Pool, Error> {
        pool::open(self.config.clone(), self.tls.clone(), self.notices, options, target, in_use)
    }

    fn cancel(&self, token: &CancelToken) -> Result<(), postgres::Error> {
        token.cancel_query(self.tls.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::limits::{KEEPALIVES_IDLE, KEEPALIVES_INTERVAL, KEEPALIVES_RETRIES, TCP_USER_TIMEOUT};
    use super::*;

    #[test]
    fn the_target_names_everything_but_the_password() {
        for (url, target) in [
            ("postgres://u:secret@h:1/d", "h:1/d as u"),
            ("postgres://u@h", "h:5432/u as u"),
            ("postgres://[::1],b:2/d", "[::1]:5432,b:2/d as the system's user"),
            ("host=/run/pg user=u password=secret", "/run/pg:5432/u as u"),
            ("hostaddr=10.0.0.1 user=u", "10.0.0.1:5432/u as u"),
        ] {
            let database = Database::from_url(url).unwrap();
            assert_eq!(database.target(), target);
            let shown = format!("{database:?}");
            assert!(shown.contains(target) && !shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn an_application_name_is_only_a_default() {
        let name = |database: &Database| database.connector.config().get_application_name().map(ToOwned::to_owned);
        let unnamed = Database::from_url("host=h").unwrap();
        assert_eq!(name(&unnamed.for_worker("pup")).as_deref(), Some("pup"));
        let named = Database::from_url("host=h application_name=mine").unwrap();
        assert_eq!(name(&named.for_worker("pup")).as_deref(), Some("mine"));
        // 62 bytes, then a character of two bytes.
        let long = format!("{}\u{e9}", "x".repeat(62));
        assert_eq!(name(&unnamed.for_worker(&long)), Some("x".repeat(62)));
        assert_eq!(name(&unnamed.for_worker(&"x".repeat(99))), Some("x".repeat(63)));
    }

    #[test]
    fn a_config_keeps_what_it_sets() {
        let mut config = Config::new();
        config.host("h").keepalives_idle(Duration::from_secs(60)).connect_timeout(Duration::from_secs(1));
        let database = Database::with_connector(config, NoTls);
        let config = database.connector.config();
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(60));
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(1)));
        assert_eq!(config.get_tcp_user_timeout(), Some(&TCP_USER_TIMEOUT));
        assert_eq!(config.get_keepalives_interval(), Some(KEEPALIVES_INTERVAL));
        assert_eq!(config.get_keepalives_retries(), Some(KEEPALIVES_RETRIES));
        let unset = Database::with_connector(Config::new(), NoTls);
        assert_eq!(unset.connector.config().get_keepalives_idle(), KEEPALIVES_IDLE);
    }

    #[test]
    fn a_refused_connection_says_where_and_why() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let database = Database::from_url(&format!("postgres://u:secret@127.0.0.1:{port}/d")).unwrap();
        let error = database.connect().err().unwrap();
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(&format!("127.0.0.1:{port}/d as u")) && shown.contains("refused"), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn a_server_that_never_answers_is_given_up() {
        // The kernel completes connections even if the program never accepts them.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let database = Database::from_url(&format!("postgres://u@127.0.0.1:{port}/d?connect_timeout=1")).unwrap();
        let error = database.connect().err().unwrap();
        assert!(matches!(error, Error::ConnectTimeout { waited, .. } if waited == Duration::from_secs(2)), "{error:?}");
        let attempts = |database: &Database| database.abandoned.load(Ordering::Relaxed);
        assert_eq!(attempts(&database), 1);
        // The attempt ends as soon as the server goes away.
        drop(silent);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while attempts(&database) > 0 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_empty_pool_is_refused() {
        let database = Database::from_url("host=h").unwrap();
        let error = database.pool(PoolOptions { size: 0, reset: None }).unwrap_err();
        assert!(error.to_string().starts_with("pool_size is 0"), "{error}");
    }
}
