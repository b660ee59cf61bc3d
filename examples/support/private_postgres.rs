//! A temporary PostgreSQL server of one's own, for examples, tests and benches: it needs nothing but the server's
//! binaries, and nothing of it is left when its owner is gone.
//!
//! *Invariant*: the server never outlives the process that started it, however that process ends. A small shell script,
//! the watchdog, is the server's parent and takes orders over a pipe. When the pipe closes, because the value was dropped or
//! because its process was killed, the watchdog stops the server at once and removes the directory. It runs in a process
//! group of its own, so Ctrl-C reaches the program and not its database.
//!
//! As root the watchdog and everything below it run as `postgres`, or as `nobody` where there is no such user: PostgreSQL
//! refuses to run as root.
#![allow(dead_code, reason = "several programs compile this file, and few of them call every function")]

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use postgres::NoTls;
use tempfile::TempDir;

#[path = "server_binaries.rs"]
mod server_binaries;

use server_binaries::{checked, find_server};

/// How a private server differs from the usual one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Lines for `postgresql.conf`, after ours, so they win: `("ssl", "on")`.
    pub(crate) settings: Vec<(String, String)>,
    /// Files to put into the data directory, by name: readable by the server's user only.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// What replaces `pg_hba.conf`, which trusts everybody on this machine.
    pub(crate) hba: Option<String>,
    /// Where `initdb` and `postgres` are. Defaults to the places where they are usually found.
    pub(crate) bin_dir: Option<PathBuf>,
}

/// How to stop a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum StopMode {
    /// Ends the sessions and writes a checkpoint.
    Fast,
    /// Ends everything at once: the next start has to recover, as after a crash.
    Immediate,
}

/// A running server. Dropping it stops it and removes its directory.
#[derive(Debug)]
pub(crate) struct PrivatePostgres {
    port: u16,
    pid: u32,
    running: bool,
    data: PathBuf,
    log: PathBuf,
    /// Closing this pipe is the order to end everything.
    orders: Option<ChildStdin>,
    replies: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    watchdog: Child,
    /// Last, so that it is dropped last: it removes what the watchdog could not.
    home: TempDir,
}

impl PrivatePostgres {
    /// Creates a cluster and starts a server on it; returns when it accepts connections.
    pub(crate) fn start(options: Options) -> Result<Self, String> {
        let bin_dir = match options.bin_dir {
            Some(dir) => checked(&dir).map_err(|refusal| format!("{}: {refusal}", dir.display()))?,
            None => find_server()?,
        };
        let user = user_of_server()?;
        let mut server = Self::watched(&bin_dir, user)?;
        server.order("initdb")?;
        let status = server.reply("initialised")?;
        if status != "0" {
            return Err(server.with_log(&format!("initdb ended with status {status}"), 0));
        }

        let mut conf = String::from("\n");
        for (name, value) in OUR_SETTINGS {
            add_setting(&mut conf, name, value);
        }
        for (name, value) in &options.settings {
            add_setting(&mut conf, name, value);
        }
        let conf_path = server.data.join("postgresql.conf");
        OpenOptions::new()
            .append(true)
            .open(&conf_path)
            .and_then(|mut file| file.write_all(conf.as_bytes()))
            .map_err(|e| format!("cannot write {}: {e}", conf_path.display()))?;
        if let Some(hba) = &options.hba {
            server.write_file("pg_hba.conf", hba.as_bytes(), user)?;
        }
        for (name, content) in &options.files {
            server.write_file(name, content, user)?;
        }

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

    /// The port the server listens on, at 127.0.0.1; it stays the same across [`start_again`](Self::start_again).
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database of this server, for its superuser `postgres`.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates a database and returns its URL.
    pub(crate) fn create_database(&self, name: &str) -> Result<String, String> {
        let cannot = |e: postgres::Error| {
            let reason = e.as_db_error().map_or_else(|| e.to_string(), |db| db.message().to_owned());
            format!("cannot create the database {name:?}: {reason}")
        };
        let mut client = postgres::Client::connect(&self.url("postgres"), NoTls).map_err(cannot)?;
        client.batch_execute(&format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""))).map_err(cannot)?;
        Ok(self.url(name))
    }

    /// Stops the server and waits until none of its processes is left. The data stays.
    pub(crate) fn stop(&mut self, mode: StopMode) -> Result<(), String> {
        if self.running {
            self.order(match mode {
                StopMode::Fast => "stop INT",
                StopMode::Immediate => "stop QUIT",
            })?;
            self.reply("stopped")?;
            self.running = false;
        }
        Ok(())
    }

    /// Starts the server on the same data and port, after a [`stop`](Self::stop) or when it ended by itself.
    pub(crate) fn start_again(&mut self) -> Result<(), String> {
        self.stop(StopMode::Immediate)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.launch() {
                Ok(()) => return Ok(()),
                // Whoever took the port in the meantime may soon be done with it, and the clients know no other.
                Err(Failure::PortTaken(_)) if Instant::now() < deadline => {}
                Err(Failure::PortTaken(why) | Failure::Other(why)) => return Err(why),
            }
        }
    }

    /// The process id of the postmaster, the parent of all processes of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The data directory.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data
    }

    /// Makes the directory and starts the watchdog, which has no server yet.
    fn watched(bin_dir: &Path, user: Option<User>) -> Result<Self, String> {
        let home = make_home(user)?;
        let log = home.path().join("log");
        let log_file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|e| format!("cannot create {}: {e}", log.display()))?;

        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(WATCHDOG)
            .arg("private-postgres")
            .arg(home.path())
            .arg(bin_dir)
            .current_dir(home.path())
            // Messages in one language, because one of them is looked for.
            .env("LC_ALL", "C")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file);
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        let mut watchdog = command.spawn().map_err(|e| format!("cannot run /bin/sh: {e}"))?;
        let orders = watchdog.stdin.take();
        let output = watchdog.stdout.take().ok_or("the watchdog has no output to read")?;
        // At most one line is ever unread: that the server ended.
        let (sender, replies) = bounded(8);
        let reader = thread::Builder::new()
            .name("pup-pg-watch".to_owned())
            .spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            })
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(Self {
            port: 0,
            pid: 0,
            running: false,
            data: home.path().join("data"),
            log,
            orders,
            replies,
            reader: Some(reader),
            watchdog,
            home,
        })
    }

    /// Starts the server on `self.port` and waits until it accepts connections.
    fn launch(&mut self) -> Result<(), Failure> {
        let log_start = fs::metadata(&self.log).map_or(0, |log| log.len());
        // What an earlier server of this directory left unread.
        while self.replies.try_recv().is_ok() {}
        self.order(&format!("start {}", self.port))?;
        let pid = self.reply("started")?;
        self.running = true;
        self.pid = pid.parse().map_err(|_| format!("the watchdog said that the server's process is {pid:?}"))?;

        let deadline = Instant::now() + PATIENCE;
        let reason = loop {
            if self.is_ready() {
                return Ok(());
            }
            match self.replies.recv_timeout(POLL) {
                Ok(_) => break "the server ended while it started".to_owned(),
                Err(RecvTimeoutError::Disconnected) => return Err(WATCHDOG_GONE.to_owned().into()),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    break format!("the server did not accept connections within {PATIENCE:?}");
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        self.stop(StopMode::Immediate)?;
        let why = self.with_log(&reason, log_start);
        if why.contains("could not bind") { Err(Failure::PortTaken(why)) } else { Err(Failure::Other(why)) }
    }

    /// Whether the postmaster says in its pid file that it accepts connections. Unlike a connection, this asks for no
    /// password and no TLS, whatever `pg_hba.conf` says. `pg_ctl` waits in the same way.
    fn is_ready(&self) -> bool {
        fs::read_to_string(self.data.join("postmaster.pid")).is_ok_and(|file| {
            let mut lines = file.lines().map(str::trim);
            lines.next() == Some(&self.pid.to_string()) && lines.nth(6) == Some("ready")
        })
    }

    fn order(&mut self, order: &str) -> Result<(), String> {
        self.orders
            .as_mut()
            .ok_or(WATCHDOG_GONE)?
            .write_all(format!("{order}\n").as_bytes())
            .map_err(|e| format!("{WATCHDOG_GONE}: {e}"))
    }

    /// Waits for the reply that begins with `word`, and returns what follows it.
    fn reply(&self, word: &str) -> Result<String, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.replies.recv_deadline(deadline) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(word) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let reason = format!("the server is not {word} after {PATIENCE:?}");
                    return Err(self.with_log(&reason, 0));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.with_log(WATCHDOG_GONE, 0));
                }
            }
        }
    }

    /// The reason, and the last lines of the log from `start` on.
    fn with_log(&self, reason: &str, start: u64) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.log).and_then(|mut log| {
            log.seek(SeekFrom::Start(start))?;
            log.read_to_end(&mut bytes)
        });
        if let Err(e) = read {
            return format!("{reason}; its log cannot be read: {e}");
        }
        let log = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or(&[]);
        format!("{reason}; its log ends with:\n{}", last.join("\n"))
    }

    fn write_file(&self, name: &str, content: &[u8], user: Option<User>) -> Result<(), String> {
        let path = self.data.join(name);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| give(&path, user))
            .map_err(|e| format!("cannot write {}: {e}", path.display()))
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        drop(self.orders.take());
        // Neither can fail in a way that anything is left to do about.
        let _ = self.watchdog.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Its arguments are the directory and the place of the binaries. Orders are lines on its input, replies lines on its
/// output; its errors and those of the server go to the log. The server and all its processes hold the writing end of
/// the fifo `alive`, so its end is theirs. `wait` waits for that too, and no signal but KILL ends the watchdog first.
const WATCHDOG: &str = r#"
home=$1 bin=$2 server=
trap '' HUP INT TERM PIPE
end() {
    kill -s "$1" "$server"
    kill -s CONT "$server" # a frozen server hears nothing
    wait
    server=
}
mkfifo "$home/alive"
while read -r order argument; do
    case $order in
    initdb)
        "$bin/initdb" --pgdata="$home/data" --auth=trust --username=postgres --encoding=UTF8 --locale=C \
            --no-sync --no-instructions </dev/null >&2
        echo "initialised $?"
        ;;
    start)
        "$bin/postgres" -D "$home/data" -p "$argument" </dev/null 3>"$home/alive" >&2 &
        server=$!
        echo "started $server"
        { cat "$home/alive"; echo ended; } </dev/null &
        ;;
    stop)
        end "$argument"
        echo stopped
        ;;
    esac
done
[ -z "$server" ] || end QUIT
rm -rf "$home"
"#;

const WATCHDOG_GONE: &str = "the server's watchdog ended";

/// How long a step may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a starting server is asked whether it is ready.
const POLL: Duration = Duration::from_millis(10);

/// Nothing here outlives its server, so nothing has to reach the disk. `synchronous_commit` stays on: without fsync it
/// costs little, and commits then take the path they take in production.
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
    PortTaken(String),
    Other(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

/// Whom the server runs as, where that is not the user of this process.
#[derive(Clone, Copy, Debug)]
struct User {
    uid: u32,
    gid: u32,
}

fn add_setting(conf: &mut String, name: &str, value: &str) {
    let value = value.replace('\\', r"\\").replace('\'', "''");
    // Writing to a String cannot fail.
    let _ = writeln!(conf, "{name} = '{value}'");
}

/// A port that is free now, below those that the system gives to outgoing connections: a client that tries a stopped
/// server's port again and again must not be given that very port as its own, which would keep the server from coming back.
fn free_port() -> Result<u16, String> {
    for _ in 0..100 {
        let port = fastrand::u16(10_240..32_768);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("no free port at 127.0.0.1: a hundred were tried".to_owned())
}

/// An empty directory that belongs to the server's user and that this user can reach and remove.
fn make_home(user: Option<User>) -> Result<TempDir, String> {
    let mut parents = vec![std::env::temp_dir()];
    if user.is_some() {
        parents.extend(["/tmp", "/var/tmp"].map(PathBuf::from));
        parents.retain(|dir| open_to_all(dir));
    }
    let parent = parents.first().ok_or("no temporary directory is open to all users, not even /tmp")?;
    tempfile::Builder::new()
        .prefix("private-postgres-")
        .tempdir_in(parent)
        .and_then(|home| give(home.path(), user).map(|()| home))
        .map_err(|e| format!("cannot make a directory in {}: {e}", parent.display()))
}

fn open_to_all(dir: &Path) -> bool {
    let has = |path: &Path, bits| fs::metadata(path).is_ok_and(|meta| meta.mode() & bits == bits);
    fs::canonicalize(dir).is_ok_and(|dir| has(&dir, 0o003) && dir.ancestors().all(|above| has(above, 0o001)))
}

fn give(path: &Path, user: Option<User>) -> std::io::Result<()> {
    match user {
        Some(user) => chown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

/// An unprivileged user if this process is root's.
fn user_of_server() -> Result<Option<User>, String> {
    let id = |arguments: &[&str]| -> Option<u32> { output("id", arguments)?.trim().parse().ok() };
    if id(&["-u"]) != Some(0) {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| {
            let uid = id(&["-u", name]).filter(|uid| *uid != 0)?;
            let gid = id(&["-g", name])?;
            Some(Some(User { uid, gid }))
        })
        .ok_or_else(|| {
            "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody` to run it as"
                .to_owned()
        })
}

/// The output of a program that succeeds.
fn output(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
