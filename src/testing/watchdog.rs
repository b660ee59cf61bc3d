//! The parent process of a private server: a small shell script that receives orders over a pipe.
//!
//! *Invariant:* the server never outlives the process that started it, in whatever way that process
//! ends. When the pipe closes, because the value was dropped or because its process was killed, the
//! watchdog stops the server at once and removes the directory. It runs in a process group of its
//! own, so Ctrl-C reaches the program and not its database.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use tempfile::TempDir;

use super::error::Error;
use super::user::{User, give};

/// How long a step may take before it counts as failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) const WATCHDOG_GONE: &str = "the server's watchdog ended";

/// A running watchdog. Dropping this value ends the watchdog and its server, and removes the
/// directory.
#[derive(Debug)]
pub(super) struct Watchdog {
    log: PathBuf,
    /// Closing this pipe tells the watchdog to end everything.
    orders: Option<ChildStdin>,
    replies: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    process: Child,
    /// Declared last, so that it is dropped last: it removes what the watchdog could not remove.
    home: TempDir,
}

impl Watchdog {
    /// Creates the directory and starts the watchdog, which has no server yet.
    pub(super) fn start(bin_dir: &Path, user: Option<User>) -> Result<Self, Error> {
        let home = make_home(user)?;
        let log = home.path().join("log");
        let log_file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::cannot(format_args!("create {}", log.display())))?;

        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(SCRIPT)
            .arg("private-postgres")
            .arg(home.path())
            .arg(bin_dir)
            .current_dir(home.path())
            // Sets the language of the messages, because the library searches the log for one of
            // them.
            .env("LC_ALL", "C")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file);
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        let mut process = command.spawn().map_err(Error::cannot("run /bin/sh"))?;
        let orders = process.stdin.take();
        let output = process.stdout.take().ok_or_else(|| Error::new("the watchdog has no output to read"))?;
        // At most one line is ever unread: the one that says that the server ended.
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
            .map_err(Error::cannot("start a thread"))?;
        Ok(Self { log, orders, replies, reader: Some(reader), process, home })
    }

    /// The directory that the watchdog removes in the end.
    pub(super) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(super) fn order(&mut self, order: &str) -> Result<(), Error> {
        self.orders
            .as_mut()
            .ok_or_else(|| Error::new(WATCHDOG_GONE))?
            .write_all(format!("{order}\n").as_bytes())
            .map_err(|error| Error::new(format!("{WATCHDOG_GONE}: {error}")))
    }

    /// Waits for the reply that begins with `word`, and returns the rest of the reply.
    pub(super) fn reply(&self, word: &str) -> Result<String, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.replies.recv_deadline(deadline) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(word) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.with_log(&format!("the server is not {word} after {PATIENCE:?}"), 0));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.with_log(WATCHDOG_GONE, 0)),
            }
        }
    }

    /// Waits for any reply. After the server has started, the only one is that it has ended.
    pub(super) fn next_reply(&self, timeout: Duration) -> Result<(), RecvTimeoutError> {
        self.replies.recv_timeout(timeout).map(drop)
    }

    /// Drops unread replies about an earlier server of this directory.
    pub(super) fn forget_replies(&self) {
        while self.replies.try_recv().is_ok() {}
    }

    /// Returns the current length of the log.
    pub(super) fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// Creates an error with the reason and the last lines of the log from `start` on.
    pub(super) fn with_log(&self, reason: &str, start: u64) -> Error {
        let mut bytes = Vec::new();
        let read = File::open(&self.log).and_then(|mut log| {
            log.seek(SeekFrom::Start(start))?;
            log.read_to_end(&mut bytes)
        });
        if let Err(error) = read {
            return Error::new(format!("{reason}; its log cannot be read: {error}"));
        }
        let log = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or(&[]);
        Error::new(format!("{reason}; its log ends with:\n{}", last.join("\n")))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.orders.take());
        // If either fails, there is nothing left to do.
        _ = self.process.wait();
        if let Some(reader) = self.reader.take() {
            _ = reader.join();
        }
    }
}

/// The watchdog's script. Its arguments are the directory and the place of the binaries. Orders are
/// lines on its input, and replies are lines on its output. Its errors and those of the server go
/// to the log. The server and all its processes hold the writing end of the fifo `alive`, so
/// reading it ends when all of them have ended. `wait` waits for that reader too, and the watchdog
/// ignores the signals that could end it earlier, except KILL.
const SCRIPT: &str = r#"
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

/// Creates an empty directory that belongs to the server's user, and that this user can reach and
/// remove.
fn make_home(user: Option<User>) -> Result<TempDir, Error> {
    let mut parents = vec![std::env::temp_dir()];
    if user.is_some() {
        parents.extend(["/tmp", "/var/tmp"].map(PathBuf::from));
        parents.retain(|dir| open_to_all(dir));
    }
    let parent =
        parents.first().ok_or_else(|| Error::new("no temporary directory is open to all users, not even /tmp"))?;
    tempfile::Builder::new()
        .prefix("private-postgres-")
        .tempdir_in(parent)
        .and_then(|home| give(home.path(), user).map(|()| home))
        .map_err(Error::cannot(format_args!("make a directory in {}", parent.display())))
}

fn open_to_all(dir: &Path) -> bool {
    let has = |path: &Path, bits| fs::metadata(path).is_ok_and(|meta| meta.mode() & bits == bits);
    fs::canonicalize(dir).is_ok_and(|dir| has(&dir, 0o003) && dir.ancestors().all(|above| has(above, 0o001)))
}
