//! A private PostgreSQL server. It needs only the server's binaries, and nothing of it remains when
//! its owner has ended. Its parent process is the [watchdog](super::watchdog).

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use super::binaries::checked;
use super::error::Error;
use super::provision::find_server;
use super::statement::execute;
use super::user::{User, give, user_of_server};
use super::watchdog::{PATIENCE, WATCHDOG_GONE, Watchdog};

/// A running PostgreSQL server for this process alone. Dropping it stops the server and removes its
/// directory. So does the end of the process, even by `kill -9`.
///
/// It listens on a free port of 127.0.0.1 and trusts every user of this machine. The superuser is
/// `postgres`, the locale `C`, the encoding UTF8 and the time zone UTC. It does not wait for the
/// disk (`fsync = off`).
///
/// Starting it takes about a second. Tests that need no server of their own can share one: see
/// [`database`](super::database()).
///
/// ```no_run
/// use pupsourcing_orchestrator::testing::{Postgres, StopMode};
///
/// let mut server = Postgres::options().setting("max_connections", "20").start()?;
/// let url = server.create_database("shop")?;
/// server.stop(StopMode::Immediate)?;
/// server.start_again()?;
/// # Ok::<(), pupsourcing_orchestrator::testing::Error>(())
/// ```
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    pid: u32,
    running: bool,
    data: PathBuf,
    watchdog: Watchdog,
}

/// The options of a private server.
#[derive(Clone, Debug, Default)]
#[must_use = "options do nothing until a server is started"]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
    files: Vec<(String, Vec<u8>)>,
    hba: Option<String>,
    bin_dir: Option<PathBuf>,
}

impl PostgresOptions {
    /// Sets a parameter of `postgresql.conf`. The defaults are those of [`Postgres`], with 200
    /// connections.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Creates a file in the data directory, which only the server's user can read. Defaults to
    /// none.
    pub fn file(mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.into(), content.into()));
        self
    }

    /// Replaces `pg_hba.conf`. By default, every user of this machine is trusted.
    pub fn hba(mut self, content: impl Into<String>) -> Self {
        self.hba = Some(content.into());
        self
    }

    /// Sets the directory that has `initdb` and `postgres`. Defaults to what the
    /// [module](super#where-the-binaries-come-from) describes.
    pub fn bin_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.bin_dir = Some(dir.into());
        self
    }

    /// Creates a cluster and starts a server on it. Returns when the server accepts connections.
    ///
    /// # Errors
    ///
    /// An error if there are no binaries and none can be installed, or if the server does not
    /// start; in the second case, the error ends with the server's log.
    pub fn start(self) -> Result<Postgres, Error> {
        let bin_dir = match &self.bin_dir {
            Some(dir) => checked(dir).map_err(|refusal| Error::new(format!("{}: {refusal}", dir.display())))?,
            None => find_server()?,
        };
        let user = user_of_server()?;
        let watchdog = Watchdog::start(&bin_dir, user)?;
        let data = watchdog.home().join("data");
        let mut server = Postgres { port: 0, pid: 0, running: false, data, watchdog };
        server.watchdog.order("initdb")?;
        let status = server.watchdog.reply("initialised")?;
        if status != "0" {
            return Err(server.watchdog.with_log(&format!("initdb ended with status {status}"), 0));
        }
        server.write_files(&self, user)?;

        let mut attempts = 1;
        loop {
            server.port = free_port()?;
            match server.launch() {
                Ok(()) => return Ok(server),
                Err(Failure::PortTaken(_)) if attempts < 5 => attempts += 1,
                Err(Failure::PortTaken(why) | Failure::Other(why)) => return Err(why),
            }
        }
    }
}

/// How to stop a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StopMode {
    /// Ends the sessions, and writes a checkpoint.
    Fast,
    /// Ends all processes at once. The next start has to recover, as after a crash.
    Immediate,
}

impl Postgres {
    /// Creates a cluster and starts a server on it. Returns when the server accepts connections.
    ///
    /// # Errors
    ///
    /// The errors of [`PostgresOptions::start`].
    pub fn start() -> Result<Self, Error> {
        Self::options().start()
    }

    /// Returns options, to start a server with other settings than the default.
    pub fn options() -> PostgresOptions {
        PostgresOptions::default()
    }

    /// The port of 127.0.0.1 that the server listens on. It stays the same across
    /// [`start_again`](Self::start_again).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database of this server, for its superuser `postgres`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates a database and returns its URL.
    ///
    /// # Errors
    ///
    /// An error if the server is stopped or refuses, for example because the database exists.
    pub fn create_database(&self, name: &str) -> Result<String, Error> {
        execute(&self.url("postgres"), &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")))?;
        Ok(self.url(name))
    }

    /// Stops the server, and waits until none of its processes is left. The data stays.
    ///
    /// # Errors
    ///
    /// An error if the server does not end within 30 seconds.
    pub fn stop(&mut self, mode: StopMode) -> Result<(), Error> {
        if self.running {
            self.watchdog.order(match mode {
                StopMode::Fast => "stop INT",
                StopMode::Immediate => "stop QUIT",
            })?;
            self.watchdog.reply("stopped")?;
            self.running = false;
        }
        Ok(())
    }

    /// Starts the server with the same data and port, after a [`stop`](Self::stop) or after it
    /// ended by itself.
    ///
    /// # Errors
    ///
    /// An error if the server does not accept connections within 30 seconds. It ends with the
    /// server's log.
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.stop(StopMode::Immediate)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.launch() {
                Ok(()) => return Ok(()),
                // Another program has taken the port in the meantime. It may soon release the port,
                // which is the only one that the clients know.
                Err(Failure::PortTaken(_)) if Instant::now() < deadline => {}
                Err(Failure::PortTaken(why) | Failure::Other(why)) => return Err(why),
            }
        }
    }

    /// The process id of the postmaster, the parent of all processes of the server.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The data directory. The server's log is the file `log` beside it.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// Starts the server on `self.port` and waits until it accepts connections.
    fn launch(&mut self) -> Result<(), Failure> {
        let log_start = self.watchdog.log_length();
        self.watchdog.forget_replies();
        self.watchdog.order(&format!("start {}", self.port))?;
        let pid = self.watchdog.reply("started")?;
        self.running = true;
        self.pid =
            pid.parse().map_err(|_| Error::new(format!("the watchdog said that the server's process is {pid:?}")))?;

        let deadline = Instant::now() + PATIENCE;
        let reason = loop {
            if self.is_ready() {
                return Ok(());
            }
            match self.watchdog.next_reply(POLL) {
                Ok(()) => break "the server ended while it started".to_owned(),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::new(WATCHDOG_GONE).into()),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    break format!("the server did not accept connections within {PATIENCE:?}");
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        self.stop(StopMode::Immediate)?;
        let why = self.watchdog.with_log(&reason, log_start);
        let is_taken = why.to_string().contains("could not bind");
        Err(if is_taken { Failure::PortTaken(why) } else { Failure::Other(why) })
    }

    /// Whether the postmaster's pid file says that it accepts connections. Unlike a connection,
    /// this needs no password and no TLS, whatever `pg_hba.conf` says. `pg_ctl` waits in the same
    /// way.
    fn is_ready(&self) -> bool {
        fs::read_to_string(self.data.join("postmaster.pid")).is_ok_and(|file| {
            let mut lines = file.lines().map(str::trim);
            lines.next() == Some(&self.pid.to_string()) && lines.nth(6) == Some("ready")
        })
    }

    fn write_files(&self, options: &PostgresOptions, user: Option<User>) -> Result<(), Error> {
        let mut conf = String::from("\n");
        for (name, value) in OUR_SETTINGS {
            add_setting(&mut conf, name, value);
        }
        for (name, value) in &options.settings {
            add_setting(&mut conf, name, value);
        }
        let conf_path = self.data.join("postgresql.conf");
        OpenOptions::new()
            .append(true)
            .open(&conf_path)
            .and_then(|mut file| file.write_all(conf.as_bytes()))
            .map_err(Error::cannot(format_args!("write {}", conf_path.display())))?;
        if let Some(hba) = &options.hba {
            self.write_file("pg_hba.conf", hba.as_bytes(), user)?;
        }
        options.files.iter().try_for_each(|(name, content)| self.write_file(name, content, user))
    }

    fn write_file(&self, name: &str, content: &[u8], user: Option<User>) -> Result<(), Error> {
        let path = self.data.join(name);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| give(&path, user))
            .map_err(Error::cannot(format_args!("write {}", path.display())))
    }
}

/// How often the library checks whether a starting server is ready.
const POLL: Duration = Duration::from_millis(10);

/// No data outlives its server, so nothing has to reach the disk. `synchronous_commit` stays on:
/// without fsync it costs little, and commits then work as in production.
const OUR_SETTINGS: [(&str, &str); 8] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "128MB"),
    ("max_connections", "200"),
    ("max_prepared_transactions", "10"),
    ("timezone", "UTC"),
];

/// Why a server did not start.
enum Failure {
    PortTaken(Error),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(why: Error) -> Self {
        Self::Other(why)
    }
}

/// Adds a line to `postgresql.conf`. The last line with a name wins.
fn add_setting(conf: &mut String, name: &str, value: &str) {
    let value = value.replace('\\', r"\\").replace('\'', "''");
    // Writing to a String cannot fail.
    _ = writeln!(conf, "{name} = '{value}'");
}

/// Returns a port that is free now, below the ports that the system assigns to outgoing
/// connections. Otherwise a client that repeatedly tries the port of a stopped server might be
/// assigned this port as its own, and the server could not start again.
fn free_port() -> Result<u16, Error> {
    for _ in 0..100 {
        let port = fastrand::u16(10_240..32_768);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new("no free port at 127.0.0.1: a hundred were tried"))
}
