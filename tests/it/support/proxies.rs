//! Proxies between a worker and its server: real programs, if they are installed, and a switch.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, never, unbounded};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::eventually;
use super::installed::{installed, say_at_the_end};
use super::process::{Line, Process, Stream};

const PATIENCE: Duration = Duration::from_secs(10);

/// A running proxy. Dropping it kills it.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    process: Process,
    log: Receiver<Line>,
    _folder: TempDir,
}

impl Proxy {
    fn start(mut command: Command, port: u16, folder: TempDir) -> Self {
        let (sender, log) = unbounded();
        command.stdout(Stdio::null());
        let process = Process::start(command, Stream::Stderr, sender).unwrap();
        let mut proxy = Self { port, process, log, _folder: folder };
        eventually("the proxy listens", PATIENCE, || {
            proxy.assert_runs();
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        proxy
    }

    fn assert_runs(&mut self) {
        let ended = self.process.ended().unwrap();
        let log = || self.log.try_iter().map(|line| line.text).collect::<Vec<_>>();
        assert!(ended.is_none(), "the proxy ended: {:#?}", log());
    }

    /// The URL of a database behind it.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

/// A port that is free at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A PgBouncer, and what it is capable of.
#[derive(Debug, Clone)]
pub(crate) struct PgBouncer {
    program: PathBuf,
    /// Whether it supports prepared statements in transaction mode.
    pub(crate) is_capable: bool,
}

/// Every PgBouncer on this machine: the system's, and those in `/opt/pgbouncer*/bin`.
pub(crate) fn pgbouncers() -> Vec<PgBouncer> {
    let optional = fs::read_dir("/opt").into_iter().flatten().filter_map(Result::ok);
    let optional = optional
        .filter(|folder| folder.file_name().to_string_lossy().starts_with("pgbouncer"))
        .map(|folder| folder.path().join("bin/pgbouncer"))
        .filter(|program| program.is_file());
    let system = installed(&["pgbouncer", "../sbin/pgbouncer"]);
    let all: Vec<PgBouncer> = system.into_iter().chain(optional).map(PgBouncer::examine).collect();
    println!("{all:#?}");
    if !all.iter().any(|one| one.is_capable) {
        say_at_the_end(
            "LEFT OUT: a pooler in transaction mode, because no PgBouncer from 1.21 on is in PATH or /opt/pgbouncer*/bin",
        );
    }
    all
}

impl PgBouncer {
    fn examine(program: PathBuf) -> Self {
        let said = Command::new(&program).arg("--version").output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        let version = said.split_whitespace().nth(1).unwrap_or_default();
        let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
        let is_capable = (numbers.next(), numbers.next()) >= (Some(1), Some(21));
        Self { program, is_capable }
    }

    /// Starts it in front of a server on this machine, with lines for its configuration.
    pub(crate) fn start(&self, server_port: u16, settings: &[&str]) -> Proxy {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let within = |name: &str| folder.path().join(name);
        let users = within("users.txt");
        fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\n{}\n",
            users.display(),
            settings.join("\n")
        );
        fs::write(within("pgbouncer.ini"), configuration).unwrap();
        let mut command = Command::new(&self.program);
        if fs::metadata(folder.path()).unwrap().uid() == 0 {
            // It refuses to run as root.
            allow_reading(folder.path());
            command.args(["--user", "nobody"]);
        }
        command.arg(within("pgbouncer.ini"));
        Proxy::start(command, port, folder)
    }
}

fn allow_reading(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Starts an HAProxy in front of a server on this machine. It closes connections that are idle for
/// this time. `None` if it is not installed.
pub(crate) fn haproxy(server_port: u16, idle: Duration) -> Option<Proxy> {
    let program = installed(&["haproxy", "../sbin/haproxy"])?;
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let idle = idle.as_millis();
    let configuration = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client {idle}ms\n timeout server {idle}ms\n\
         listen postgres\n bind 127.0.0.1:{port}\n server one 127.0.0.1:{server_port}\n"
    );
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(file);
    Some(Proxy::start(command, port, folder))
}

/// Forwards connections to a server on this machine, with a delay if wanted. The server can be
/// changed for later connections.
#[derive(Clone)]
pub(crate) struct Switch {
    pub(crate) port: u16,
    target: Arc<AtomicU16>,
    /// The delay with which everything is forwarded, in milliseconds.
    delay: Arc<AtomicU64>,
    links: Arc<Mutex<Vec<Link>>>,
}

/// A client's connection, and the one to the server.
struct Link([TcpStream; 2]);

impl Link {
    fn cut(&self) {
        for stream in &self.0 {
            _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Switch {
    pub(crate) fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let switch =
            Self { port, target: Arc::new(AtomicU16::new(target)), delay: Arc::default(), links: Arc::default() };
        let Self { target: to, delay, links, .. } = switch.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to.load(Ordering::Relaxed))) else { continue };
                for (from, into) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let delay = delay.clone();
                    std::thread::spawn(move || {
                        let mut chunk = vec![0; 64 * 1024];
                        while let Ok(read @ 1..) = from.read(&mut chunk) {
                            let delay = Duration::from_millis(delay.load(Ordering::Relaxed));
                            _ = never::<()>().recv_timeout(delay);
                            if into.write_all(&chunk[..read]).is_err() {
                                break;
                            }
                        }
                        _ = into.shutdown(Shutdown::Both);
                    });
                }
                links.lock().push(Link([client, server]));
            }
        });
        switch
    }

    /// Leads new connections to the server at this port.
    pub(crate) fn lead_to(&self, server_port: u16) {
        self.target.store(server_port, Ordering::Relaxed);
    }

    /// Forwards everything with this delay, in each direction.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.delay.store(delay.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.links.lock().drain(..).for_each(|link| link.cut());
    }

    /// Ends the connection whose `inet_client_port()` this is.
    pub(crate) fn cut_one(&self, client_port: i32) {
        let links = self.links.lock();
        let is_wanted = |link: &&Link| link.0[1].local_addr().is_ok_and(|own| i32::from(own.port()) == client_port);
        links.iter().find(is_wanted).expect("it leads through here").cut();
    }
}
