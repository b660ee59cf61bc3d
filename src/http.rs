//! The metrics server: `/metrics`, `/livez`, `/readyz`.
//!
//! It answers from memory: no request ever reaches the database, so it answers as fast while Postgres is down.
//!
//! *Invariants:* one client can hold up neither another one nor the shutdown, and no request, however formed, costs more than
//! [`MOST_CONNECTIONS`] threads, [`LONGEST_HEAD`] bytes of each client's input and one response of output.
//!
//! `pup-http` accepts. Each connection is answered by a short-lived thread `pup-http-N` of its own: one request, one response,
//! as HTTP/1.0 has it, which a scraper or a probe understands and which leaves nothing to keep alive. When all seats are
//! taken the oldest connection is closed for the newest, so that idle or slow clients can't keep a scrape waiting. Shutdown
//! closes every socket; whatever thread was reading or writing one ends at once.
//!
//! Requests and responses are `tiny_http`'s, its `Server` is not: it has a thread for each idle connection, no timeout, no bound
//! to a request line, ends for good when the process is out of file descriptors, and aborts the process over a body announced as
//! larger than memory.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use parking_lot::{Mutex, RwLock};
use socket2::SockRef;
use tiny_http::{HTTPVersion, Header, Method, Response};

use crate::error::Error;
use crate::metrics::Metrics;
use crate::plan::WorkerId;
use crate::status::Status;
use crate::threads::{Never, Stop};

/// Connections answered at the same time: far more than scrapers and probes make, far fewer than would hurt.
const MOST_CONNECTIONS: usize = 64;
/// Connections the system may hold for the acceptor. With the 128 that std asks for, a burst of idle clients makes the system
/// drop a scrape's first packet, which the scraper sends again after a second.
const BACKLOG: i32 = 1024;
/// Bytes of a request's first line and headers together.
const LONGEST_HEAD: usize = 8 * 1024;
/// From the accept to the last byte of the request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// From the first byte of the response to the last.
const RESPONSE_TIME: Duration = Duration::from_secs(10);
/// How long, and how much, a refused client is listened to so that it reads its answer before the connection is reset.
const DRAIN_TIME: Duration = Duration::from_secs(1);
const DRAIN_BYTES: usize = 1024 * 1024;
/// How long the end of the threads is awaited, once their sockets are closed.
const JOIN_TIME: Duration = Duration::from_millis(100);
/// The pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

const INDEX: &str = "\
pupsourcing-orchestrator

/metrics  Prometheus's text format
/livez    200 while the threads of every worker in this process make progress
/readyz   200 while every worker in this process takes part in its replica set
";

/// Serves the metrics and the health of the orchestrators in this process over HTTP.
///
/// | path | answer |
/// |---|---|
/// | `/metrics` | everything in the registry, in Prometheus's text format 0.0.4; 404 if the metrics are disabled |
/// | `/livez` | 200 while the threads of every watched worker make progress, else 503 and the reason; also 200 when none is watched |
/// | `/readyz` | 200 while every watched worker is registered, reaches the database, and holds an assignment or coordinates; else 503 and the reason; also 503 when none is watched |
/// | `/` | the list of paths |
///
/// No answer asks the database, so all of them come at once also while it is down. GET and HEAD are served; a query string is
/// ignored. The connection is closed after each answer.
///
/// Dropping the server shuts it down.
pub struct MetricsServer {
    address: SocketAddr,
    site: Arc<Site>,
    connections: Arc<Connections>,
    stop: Stop,
    acceptor: Option<JoinHandle<()>>,
    /// Disconnected when the acceptor and every connection's thread have ended.
    ended: Receiver<Never>,
}

impl MetricsServer {
    /// Binds `address`, such as `0.0.0.0:9090`, and serves from now on. Port 0 takes any free port: see [`Self::address`].
    ///
    /// [`Error::Http`] if the address is malformed, in use or not this host's.
    pub fn bind(address: &str, metrics: Metrics) -> Result<Self, Error> {
        let refused = |source| Error::Http { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied => refused(error.into()),
            _ => refused(format!("{error} (expected a host or IP address and a port, such as 0.0.0.0:9090)").into()),
        })?;
        if let Err(error) = SockRef::from(&listener).listen(BACKLOG) {
            log::debug!("metrics server keeps the system's backlog: error={error}");
        }
        let bound = listener.local_addr().map_err(|error| refused(error.into()))?;
        let site = Arc::new(Site { metrics, watched: RwLock::default() });
        let connections = Arc::new(Connections::default());
        let stop = Stop::new();
        let (alive, ended) = bounded(0);
        let acceptor = Acceptor {
            listener,
            site: site.clone(),
            connections: connections.clone(),
            seats: bounded(MOST_CONNECTIONS),
            stop: stop.clone(),
            alive,
        };
        let acceptor = std::thread::Builder::new()
            .name("pup-http".to_owned())
            .spawn(move || acceptor.run())
            .map_err(|source| Error::Spawn { thread: "pup-http".to_owned(), source })?;
        log::info!("metrics server listens: address={bound}");
        Ok(Self { address: bound, site, connections, stop, acceptor: Some(acceptor), ended })
    }

    /// The address it is bound to, with the port that port 0 became.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets `/livez` and `/readyz` answer for an orchestrator, beside those already watched.
    pub fn watch(&self, probe: HealthProbe) {
        let worker = (probe.status)().worker_id;
        self.site.watched.write().insert(worker, probe);
    }

    /// Answers no longer for this worker: to be called when it was shut down and the process goes on.
    pub fn unwatch(&self, worker: WorkerId) {
        self.site.watched.write().remove(&worker);
    }

    /// Stops at once: the port is free again, clients in the middle of a request or an answer are cut off.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.raise();
        // Only a connection gets the acceptor out of its wait. If none can be made it ends at the next client's.
        if let Err(error) = TcpStream::connect_timeout(&reachable(self.address), JOIN_TIME) {
            log::debug!("metrics server cannot wake its acceptor: error={error}");
        }
        self.connections.close_all();
        match self.ended.recv_timeout(JOIN_TIME) {
            Err(RecvTimeoutError::Disconnected) => {
                // A panic of it has been printed by the panic hook; there is nobody to tell in a drop.
                _ = self.acceptor.take().map(JoinHandle::join);
            }
            Err(RecvTimeoutError::Timeout) => log::warn!("metrics server: a thread has not ended after {JOIN_TIME:?}"),
            Ok(never) => match never {},
        }
    }
}

impl fmt::Debug for MetricsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsServer").field("address", &self.address).finish_non_exhaustive()
    }
}

/// An address under which this host reaches what it has bound to.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// What the server asks of one orchestrator, never of the database. Its handle gives one out.
#[derive(Clone)]
pub struct HealthProbe {
    live: Check,
    ready: Check,
    status: Arc<dyn Fn() -> Status + Send + Sync>,
}

/// The reason, if it is not so.
type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

impl HealthProbe {
    /// The functions must answer at once and from memory.
    pub(crate) fn new(
        live: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        status: impl Fn() -> Status + Send + Sync + 'static,
    ) -> Self {
        Self { live: Arc::new(live), ready: Arc::new(ready), status: Arc::new(status) }
    }
}

impl fmt::Debug for HealthProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthProbe").field("worker_id", &(self.status)().worker_id).finish_non_exhaustive()
    }
}

/// What is served: pure but for what the probes know.
struct Site {
    metrics: Metrics,
    watched: RwLock<BTreeMap<WorkerId, HealthProbe>>,
}

/// A response before it is put into bytes.
struct Page {
    code: u16,
    content_type: &'static str,
    body: String,
}

impl Page {
    fn text(code: u16, body: impl Into<String>) -> Self {
        let mut body = body.into();
        if !body.ends_with('\n') {
            body.push('\n');
        }
        Self { code, content_type: "text/plain; charset=utf-8", body }
    }
}

impl Site {
    fn page(&self, path: &str) -> Option<Page> {
        Some(match path {
            "/" => Page::text(200, INDEX),
            "/metrics" => self.metrics_page(),
            "/livez" => self.health("", |probe| &probe.live),
            "/readyz" => self.health("no worker", |probe| &probe.ready),
            _ => return None,
        })
    }

    fn metrics_page(&self) -> Page {
        if self.metrics.registry().is_none() {
            return Page::text(404, "the metrics are disabled");
        }
        match self.metrics.render() {
            Ok(body) => Page { code: 200, content_type: "text/plain; version=0.0.4; charset=utf-8", body },
            Err(error) => Page::text(500, error.to_string()),
        }
    }

    /// `nobody` is the reason when no orchestrator is watched; none if that is as it should be.
    fn health(&self, nobody: &str, check: impl Fn(&HealthProbe) -> &Check) -> Page {
        // The checks are called without the lock: what they take is not known here.
        let watched: Vec<HealthProbe> = self.watched.read().values().cloned().collect();
        let mut reasons: Vec<String> = watched.iter().filter_map(|probe| unhealthy(probe, check(probe))).collect();
        if watched.is_empty() && !nobody.is_empty() {
            reasons.push(nobody.to_owned());
        }
        if reasons.is_empty() { Page::text(200, "ok") } else { Page::text(503, reasons.join("\n")) }
    }
}

fn unhealthy(probe: &HealthProbe, check: &Check) -> Option<String> {
    let reason = check().err()?;
    let status = (probe.status)();
    Some(format!("replica_set={} worker={}: {reason}", status.replica_set, status.worker_id))
}

/// The open connections, the oldest first.
#[derive(Default)]
struct Connections {
    open: Mutex<BTreeMap<u64, Arc<TcpStream>>>,
}

impl Connections {
    /// Adds a connection and closes the oldest one if there are too many. Returns whether the added one is open.
    fn open(&self, number: u64, stream: Arc<TcpStream>) -> bool {
        let mut open = self.open.lock();
        open.insert(number, stream);
        if open.len() > MOST_CONNECTIONS
            && let Some((oldest, stream)) = open.pop_first()
        {
            close(&stream);
            return oldest != number;
        }
        true
    }

    /// The first to go when file descriptors or memory are short.
    fn close_older_half(&self) {
        let mut open = self.open.lock();
        for _ in 0..open.len().div_ceil(2) {
            if let Some((_, stream)) = open.pop_first() {
                close(&stream);
            }
        }
    }

    fn close_all(&self) {
        for stream in std::mem::take(&mut *self.open.lock()).values() {
            close(stream);
        }
    }
}

/// Ends whatever read or write is under way on the connection, in whichever thread.
fn close(stream: &TcpStream) {
    // Refused only where the client has gone already.
    _ = stream.shutdown(Shutdown::Both);
}

struct Acceptor {
    listener: TcpListener,
    site: Arc<Site>,
    connections: Arc<Connections>,
    /// A message for each thread that answers a connection.
    seats: (Sender<()>, Receiver<()>),
    stop: Stop,
    alive: Sender<Never>,
}

impl Acceptor {
    fn run(self) {
        let mut waiting = VecDeque::new();
        let mut last = 0;
        let mut failing = false;
        loop {
            let accepted = self.accept_into(&mut waiting, &mut last);
            if self.stop.is_raised() {
                break;
            }
            // The newest first: it is the one that is most likely still waiting for an answer.
            if let Some((number, stream)) = waiting.pop_back() {
                self.answer_in_a_thread(number, stream);
            }
            if let Err(error) = &accepted {
                // Out of file descriptors or memory, most likely. It is not a reason to end: it passes.
                if !failing {
                    log::warn!("metrics server cannot accept a connection, goes on trying: error={error}");
                }
                waiting.drain(..waiting.len().div_ceil(2));
                self.connections.close_older_half();
                self.stop.wait(ACCEPT_PAUSE);
            }
            failing = accepted.is_err();
        }
        // What was accepted after the server closed all.
        self.connections.close_all();
    }

    /// Takes what has come, numbered by age; waits for one if there is none. Of a burst only as many are kept as there are seats,
    /// so that it costs an accept for each and no thread.
    fn accept_into(&self, waiting: &mut VecDeque<(u64, TcpStream)>, last: &mut u64) -> io::Result<()> {
        let mut wait = waiting.is_empty();
        // Bounded, for clients may come as fast as they are taken.
        for _ in 0..BACKLOG {
            self.listener.set_nonblocking(!wait)?;
            match self.listener.accept() {
                Ok((stream, _)) => {
                    *last += 1;
                    waiting.push_back((*last, stream));
                    if waiting.len() > MOST_CONNECTIONS {
                        waiting.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            wait = false;
        }
        Ok(())
    }

    fn answer_in_a_thread(&self, number: u64, stream: TcpStream) {
        // Some systems hand the listener's mode on to what it accepts.
        if stream.set_nonblocking(false).is_err() {
            return;
        }
        let stream = Arc::new(stream);
        if !self.connections.open(number, stream.clone()) {
            return;
        }
        // The thread of a closed connection gives its seat back within microseconds.
        select! {
            send(self.seats.0, ()) -> _ => {}
            recv(self.stop.heard()) -> _ => return,
        }
        let seat = Seat {
            number,
            connections: self.connections.clone(),
            seats: self.seats.1.clone(),
            _alive: self.alive.clone(),
        };
        let site = self.site.clone();
        let spawned = std::thread::Builder::new().name(format!("pup-http-{}", number % 1000)).spawn(move || {
            // Kept to the end, also when the answer panics.
            let _seat = seat;
            if let Err(error) = answer(&site, &stream) {
                log::debug!("metrics server could not answer: error={error}");
            }
        });
        if let Err(error) = spawned {
            log::warn!("metrics server cannot start a thread, drops the connection: error={error}");
        }
    }
}

/// A connection's place among the open ones, given back when its thread ends.
struct Seat {
    number: u64,
    connections: Arc<Connections>,
    seats: Receiver<()>,
    _alive: Sender<Never>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.open.lock().remove(&self.number);
        // Never empty: this seat's own message is in it.
        _ = self.seats.try_recv();
    }
}

/// Why a request is not understood.
struct Refusal(u16, &'static str);

fn answer(site: &Site, stream: &TcpStream) -> io::Result<()> {
    let mut client = Timed { stream, until: Instant::now() + HEAD_TIME };
    let (method, page, allow) = match read_head(&mut client)? {
        Some(head) => match parse(&head) {
            Ok((method, path)) => respond_to(site, method, &path),
            Err(refusal) => refused(&refusal),
        },
        None => return Ok(()),
    };
    let refused = page.code >= 400 && page.code < 500;
    client.until = Instant::now() + RESPONSE_TIME;
    client.write_all(&print(&page, &method, allow)?)?;
    if refused {
        client.drain()?;
    }
    Ok(())
}

fn respond_to(site: &Site, method: Method, path: &str) -> (Method, Page, bool) {
    match site.page(path) {
        None => {
            let page = Page::text(404, format!("no such path; served are:\n\n{INDEX}"));
            (method, page, false)
        }
        Some(page) if matches!(method, Method::Get | Method::Head) => (method, page, false),
        Some(_) => (method, Page::text(405, "only GET and HEAD are served"), true),
    }
}

fn refused(refusal: &Refusal) -> (Method, Page, bool) {
    (Method::Get, Page::text(refusal.0, refusal.1), false)
}

/// The request line and the headers; none if the client goes away without having asked for anything, or takes too long to.
fn read_head(client: &mut Timed<'_>) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::with_capacity(1024);
    let mut part = [0; 1024];
    while head.len() <= LONGEST_HEAD {
        let read = match client.read(&mut part) {
            Ok(0) => return Ok(None),
            Ok(read) => read,
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => continue,
                // Which of the two a timeout is depends on the system.
                ErrorKind::TimedOut | ErrorKind::WouldBlock => return Ok(None),
                _ => return Err(error),
            },
        };
        // The end may straddle two reads, by three bytes at most.
        let looked_at = head.len().saturating_sub(3);
        head.extend_from_slice(&part[..read]);
        if ends_head(&head[looked_at..]) {
            break;
        }
    }
    Ok(Some(head))
}

fn ends_head(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|end| end == b"\r\n\r\n") || bytes.windows(2).any(|end| end == b"\n\n")
}

/// Method and path. Headers are not looked at: nothing that is served depends on one.
fn parse(head: &[u8]) -> Result<(Method, String), Refusal> {
    let Some(line) = head.split(|&byte| byte == b'\n').next().filter(|line| line.len() < head.len().min(LONGEST_HEAD))
    else {
        return Err(Refusal(414, "the request line is too long"));
    };
    if head.len() > LONGEST_HEAD {
        return Err(Refusal(431, "the headers are too long"));
    }
    let line = String::from_utf8_lossy(line);
    let mut words = line.trim_end_matches('\r').split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal(400, "this is not an HTTP request"));
    };
    let Ok(method) = Method::from_str(method) else {
        return Err(Refusal(400, "this is not an HTTP method"));
    };
    if !version.starts_with("HTTP/") {
        return Err(Refusal(400, "this is not an HTTP request"));
    }
    if !version.starts_with("HTTP/1.") {
        return Err(Refusal(505, "only HTTP/1.0 and HTTP/1.1 are served"));
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    Ok((method, path.to_owned()))
}

/// The response in bytes, as HTTP/1.0, by which the client knows that the connection ends with it.
fn print(page: &Page, method: &Method, allow: bool) -> io::Result<Vec<u8>> {
    let mut headers = vec![
        header("Server", "pupsourcing-orchestrator")?,
        header("Content-Type", page.content_type)?,
        header("Cache-Control", "no-store")?,
    ];
    if allow {
        headers.push(header("Allow", "GET, HEAD")?);
    }
    let mut bytes = Vec::with_capacity(page.body.len() + 256);
    let length = page.body.len();
    let response = Response::new(page.code.into(), headers, page.body.as_bytes(), Some(length), None);
    response.raw_print(&mut bytes, HTTPVersion(1, 0), &[], *method == Method::Head, None)?;
    Ok(bytes)
}

fn header(field: &str, value: &str) -> io::Result<Header> {
    Header::from_bytes(field, value).map_err(|()| io::Error::new(ErrorKind::InvalidData, format!("header {field}")))
}

/// A stream with a deadline for all that is read or written, not for each call: a byte now and then buys no time.
struct Timed<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    /// Reads away what a refused client still sends. Closing over unread input would reset the connection, and the client might
    /// lose the answer.
    fn drain(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.until = Instant::now() + DRAIN_TIME;
        let mut part = [0; 4096];
        let mut drained = 0;
        while drained < DRAIN_BYTES {
            match self.read(&mut part)? {
                0 => break,
                read => drained += read,
            }
        }
        Ok(())
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::status::Board;

    const SOON: Duration = Duration::from_secs(5);

    fn server() -> MetricsServer {
        let metrics = Metrics::new().unwrap();
        metrics.for_replica_set("main").generations.inc();
        MetricsServer::bind("127.0.0.1:0", metrics).unwrap()
    }

    fn connect(server: &MetricsServer) -> TcpStream {
        let stream = TcpStream::connect_timeout(&server.address(), SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn send(server: &MetricsServer, request: &[u8]) -> String {
        let mut stream = connect(server);
        // The server may have refused before it has read everything.
        _ = stream.write_all(request);
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn get(server: &MetricsServer, path: &str) -> (String, String) {
        let answer = send(server, format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {path}: {answer:?}"));
        (head.to_owned(), body.to_owned())
    }

    fn code(answer: &str) -> u16 {
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"))
    }

    fn worker(number: u128) -> WorkerId {
        WorkerId(uuid::Uuid::from_u128(number))
    }

    struct Switches {
        live: Arc<AtomicBool>,
        ready: Arc<AtomicBool>,
    }

    fn watch(server: &MetricsServer, number: u128) -> Switches {
        let switches = Switches { live: Arc::new(true.into()), ready: Arc::new(true.into()) };
        let check = |switch: &Arc<AtomicBool>, reason: &'static str| {
            let switch = switch.clone();
            move || if switch.load(Ordering::Relaxed) { Ok(()) } else { Err(reason.to_owned()) }
        };
        let board = Board::new(worker(number), "main", []);
        server.watch(HealthProbe::new(
            check(&switches.live, "thread pup-coord is stuck"),
            check(&switches.ready, "the database is out of reach"),
            move || board.read(),
        ));
        switches
    }

    /// Polls until it is so. Each look is a round trip to the server, so this is no busy wait.
    fn eventually(what: &str, mut so: impl FnMut() -> bool) {
        let deadline = Instant::now() + SOON;
        while !so() {
            assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        }
    }

    /// Many fit in this process, whatever its limit of open files.
    fn many() -> usize {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let open_files = limits.lines().find(|line| line.starts_with("Max open files"));
        let soft: usize = open_files.and_then(|line| line.split_whitespace().nth(3)?.parse().ok()).unwrap_or(1024);
        soft.saturating_sub(400).min(1000)
    }

    #[test]
    fn metrics_are_served_in_the_text_format() {
        let server = server();
        let (head, body) = get(&server, "/metrics");
        assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
        assert!(body.contains("pupsourcing_orchestrator_generations_total{replica_set=\"main\"} 1\n"), "{body}");
        let (_, same) = get(&server, "/metrics?name[]=x&y#z");
        assert_eq!(body, same, "a query string is ignored");
    }

    #[test]
    fn disabled_metrics_are_not_found() {
        let server = MetricsServer::bind("127.0.0.1:0", Metrics::disabled().unwrap()).unwrap();
        let (head, body) = get(&server, "/metrics");
        assert_eq!((code(&head), body.as_str()), (404, "the metrics are disabled\n"));
    }

    #[test]
    fn health_is_that_of_every_watched_worker() {
        let server = server();
        assert_eq!(code(&get(&server, "/livez").0), 200);
        let (head, body) = get(&server, "/readyz");
        assert_eq!((code(&head), body.as_str()), (503, "no worker\n"));

        let (_first, second) = (watch(&server, 1), watch(&server, 2));
        assert_eq!(get(&server, "/livez").1, "ok\n");
        assert_eq!(get(&server, "/readyz").1, "ok\n");

        second.live.store(false, Ordering::Relaxed);
        second.ready.store(false, Ordering::Relaxed);
        let named = format!("replica_set=main worker={}: ", worker(2));
        let (head, body) = get(&server, "/livez");
        assert_eq!((code(&head), body), (503, format!("{named}thread pup-coord is stuck\n")));
        let (head, body) = get(&server, "/readyz");
        assert_eq!((code(&head), body), (503, format!("{named}the database is out of reach\n")));

        server.unwatch(worker(2));
        assert_eq!(code(&get(&server, "/readyz").0), 200);
    }

    #[test]
    fn requests_are_answered_by_what_is_wrong_with_them() {
        let server = server();
        let long = "a".repeat(LONGEST_HEAD);
        let cases: &[(&[u8], u16, &str)] = &[
            (b"GET / HTTP/1.1\r\n\r\n", 200, "/metrics"),
            (b"GET / HTTP/1.0\n\n", 200, "/metrics"),
            (b"GET /nowhere HTTP/1.1\r\n\r\n", 404, "/readyz"),
            (b"POST /nowhere HTTP/1.1\r\n\r\n", 404, "/readyz"),
            (b"GET /\xff\xfe\x00%zz%00\xc3 HTTP/1.1\r\n\r\n", 404, "/metrics"),
            (b"GET metrics HTTP/1.1\r\n\r\n", 404, "/metrics"),
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405, "\r\nAllow: GET, HEAD\r\n"),
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999999999\r\n\r\n", 405, "Allow"),
            (b"BREW /livez HTTP/1.1\r\n\r\n", 405, "Allow"),
            (b"GET /metrics HTTP/2.0\r\n\r\n", 505, "HTTP/1.1"),
            (b"GET /metrics\r\n\r\n", 400, ""),
            (b"\x16\x03\x01\x02\x00\n\n", 400, ""),
            (b"\r\n\r\n", 400, ""),
        ];
        for (request, expected, contains) in cases {
            let answer = send(&server, request);
            let shown = String::from_utf8_lossy(request);
            assert_eq!(code(&answer), *expected, "{shown:?}: {answer}");
            assert!(answer.contains(contains), "{shown:?}: {answer}");
        }
        let answer = send(&server, format!("GET /{long} HTTP/1.1\r\n\r\n").as_bytes());
        assert_eq!(code(&answer), 414, "{answer}");
        let answer = send(&server, format!("GET / HTTP/1.1\r\nCookie: {long}\r\n\r\n").as_bytes());
        assert_eq!(code(&answer), 431, "{answer}");
    }

    #[test]
    fn an_endless_request_line_is_refused_long_before_its_end() {
        let server = server();
        let answer = send(&server, &vec![b'a'; DRAIN_BYTES / 2]);
        assert_eq!(code(&answer), 414, "{answer}");
    }

    #[test]
    fn head_has_the_headers_of_get_and_no_body() {
        let server = server();
        for path in ["/", "/metrics", "/livez", "/readyz", "/nowhere"] {
            let without_date = |head: &str| {
                head.lines().filter(|line| !line.starts_with("Date: ")).map(str::to_owned).collect::<Vec<_>>()
            };
            let answer = send(&server, format!("HEAD {path} HTTP/1.1\r\n\r\n").as_bytes());
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(without_date(head), without_date(&get(&server, path).0), "{path}");
            assert_eq!(body, "", "{path}");
        }
    }

    #[test]
    fn an_address_in_use_and_a_bad_one_are_errors_that_name_it() {
        let server = server();
        let used = server.address().to_string();
        for address in [used.as_str(), "9090", "nonsense", "127.0.0.1:70000", ":9090", "192.0.2.1:0", ""] {
            let error = MetricsServer::bind(address, Metrics::new().unwrap()).unwrap_err();
            assert!(matches!(&error, Error::Http { address: named, .. } if named == address), "{address}: {error}");
        }
        let error = MetricsServer::bind("9090", Metrics::new().unwrap()).unwrap_err().to_string();
        assert!(error.contains("such as 0.0.0.0:9090"), "{error}");
        server.shutdown();
        MetricsServer::bind(&used, Metrics::new().unwrap()).expect("the port is free after shutdown");
    }

    #[test]
    fn every_interface_can_be_bound_and_shut_down() {
        for address in ["0.0.0.0:0", "[::]:0", "localhost:0"] {
            let Ok(server) = MetricsServer::bind(address, Metrics::new().unwrap()) else {
                assert!(address.starts_with('['), "{address}: a host without IPv6 may refuse only that one");
                continue;
            };
            let mut stream = TcpStream::connect(reachable(server.address())).unwrap();
            stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
            shut_down_at_once(server);
        }
    }

    /// None of three answers is late, and the fastest, whatever else this machine does meanwhile, takes less than 50 ms.
    fn answers_quickly(server: &MetricsServer, path: &str) {
        let took = [(); 3].map(|()| {
            let begun = Instant::now();
            assert_eq!(code(&get(server, path).0), 200);
            begun.elapsed()
        });
        assert!(took.iter().all(|took| *took < Duration::from_secs(1)), "{took:?}");
        assert!(took.iter().any(|took| *took < Duration::from_millis(50)), "{took:?}");
    }

    /// Nothing of the server is left after it: each of its threads holds a sender of what `ended` receives.
    fn shut_down_at_once(server: MetricsServer) {
        let ended = server.ended.clone();
        let begun = Instant::now();
        server.shutdown();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(1), "shutdown took {took:?}");
        assert_eq!(ended.recv_timeout(SOON).unwrap_err(), RecvTimeoutError::Disconnected, "a thread goes on");
    }

    #[test]
    fn half_a_request_line_holds_up_nobody() {
        let server = server();
        let mut slow = connect(&server);
        slow.write_all(b"GET /met").unwrap();
        answers_quickly(&server, "/metrics");
        slow.write_all(b"rics HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert_eq!(code(&answer), 200, "a slow client is served all the same");
        let mut slow = connect(&server);
        slow.write_all(b"GET /met").unwrap();
        eventually("the slow client has a thread", || server.connections.open.lock().len() == 1);
        shut_down_at_once(server);
    }

    #[test]
    fn clients_that_do_not_read_hold_up_nobody() {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::in_registry(&registry).unwrap();
        // More than the sockets' buffers take, so that each answer gets stuck halfway.
        let help = "a".repeat(16 * 1024 * 1024);
        registry.register(Box::new(prometheus::IntGauge::new("large", help).unwrap())).unwrap();
        let server = MetricsServer::bind("127.0.0.1:0", metrics).unwrap();
        let stuck: Vec<TcpStream> = (0..3)
            .map(|_| {
                let mut stream = connect(&server);
                for _ in 0..100 {
                    _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
                }
                // The first byte is there, so the answer is on its way.
                stream.peek(&mut [0]).unwrap();
                stream
            })
            .collect();
        assert_eq!(server.connections.open.lock().len(), stuck.len());
        answers_quickly(&server, "/livez");
        shut_down_at_once(server);
    }

    #[test]
    fn idle_connections_hold_up_nobody() {
        let server = server();
        let idle: Vec<TcpStream> = (0..many()).map(|_| connect(&server)).collect();
        answers_quickly(&server, "/metrics");
        let open = server.connections.open.lock().len();
        assert!((MOST_CONNECTIONS / 2..=MOST_CONNECTIONS).contains(&open), "the newest of {} stay: {open}", idle.len());
        shut_down_at_once(server);
    }

    #[test]
    fn a_client_that_went_away_leaves_nothing() {
        let server = server();
        for _ in 0..100 {
            drop(connect(&server));
            _ = connect(&server).write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
        }
        eventually("all seats are free again", || {
            assert_eq!(code(&get(&server, "/livez").0), 200);
            server.connections.open.lock().is_empty()
        });
        shut_down_at_once(server);
    }

    #[test]
    fn a_byte_now_and_then_buys_no_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let begun = Instant::now();
        let allowed = Duration::from_millis(50);
        let mut client = Timed { stream: &stream, until: begun + allowed };
        let mut reads = 0;
        let error = loop {
            slow.write_all(b"a").unwrap();
            match client.read(&mut [0; 16]) {
                Ok(read) => reads += read,
                Err(error) => break error,
            }
        };
        assert!(reads > 0 && begun.elapsed() >= allowed && begun.elapsed() < SOON);
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(read_head(&mut client).unwrap().is_none(), "who is late is not answered");
    }
}
