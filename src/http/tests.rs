mod commands;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::TryRecvError;
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use super::exchange::{REQUEST_TIME, read_head};
use super::request::LONGEST_HEAD;
use super::timed::{DRAIN_BYTES, Timed};
use super::*;
use crate::health::Limits;
use crate::status::Board;

const SOON: Duration = Duration::from_secs(20);

fn server() -> MetricsServer {
    let metrics = Metrics::new().unwrap();
    metrics.for_replica_set("main", "here").unwrap().generations.inc();
    MetricsServer::builder(metrics).bind("127.0.0.1:0").unwrap()
}

fn connect(server: &MetricsServer) -> TcpStream {
    connect_to(server.address()).unwrap()
}

fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn send(server: &MetricsServer, request: &[u8]) -> String {
    send_to(server.address(), request).unwrap()
}

fn send_to(address: SocketAddr, request: &[u8]) -> io::Result<String> {
    let mut stream = connect_to(address)?;
    // The server may refuse the request before it has read everything.
    _ = stream.write_all(request);
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8(answer).unwrap())
}

fn get(server: &MetricsServer, path: &str) -> (String, String) {
    let answer = send(server, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
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
    /// How often the status was requested.
    looks: Arc<AtomicUsize>,
}

fn watch(server: &MetricsServer, number: u128) -> Switches {
    let looks = Arc::new(AtomicUsize::new(0));
    let switches = Switches { live: Arc::new(true.into()), ready: Arc::new(true.into()), looks: looks.clone() };
    let check = |switch: &Arc<AtomicBool>, reason: &'static str| {
        let switch = switch.clone();
        move || if switch.load(Ordering::Relaxed) { Ok(()) } else { Err(reason.to_owned()) }
    };
    let board = Board::new(worker(number), "main", Limits::new(SOON, SOON, SOON, false), []);
    server.watch(HealthProbe::new(
        check(&switches.live, "thread pup-coord is stuck"),
        check(&switches.ready, "the database is out of reach"),
        move || board.read(),
        move || {
            looks.fetch_add(1, Ordering::Relaxed);
            None
        },
        || Err(Error::config("database", "none", "this worker has none")),
    ));
    switches
}

/// Polls until the condition holds. Each poll is a round trip to the server, so this is not a busy
/// wait.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !so() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
    }
}

/// Returns 1,000, or as many connections as two tests at the same time can have besides the other
/// files of this process.
fn many() -> usize {
    const WANTED: u64 = 2 * 1000 + 400;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < WANTED) {
        limit.current = Some(limit.maximum.map_or(WANTED, |most| most.min(WANTED)));
        setrlimit(Resource::Nofile, limit).unwrap();
    }
    usize::try_from(limit.current.unwrap_or(WANTED).min(WANTED).saturating_sub(400) / 2).unwrap()
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
    let server = MetricsServer::builder(Metrics::disabled().unwrap()).bind("127.0.0.1:0").unwrap();
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
fn malformed_requests_are_answered_with_the_reason() {
    let server = server();
    let long = "a".repeat(LONGEST_HEAD);
    let cases: &[(&[u8], u16, &str)] = &[
        (b"GET / HTTP/1.1\r\n\r\n", 200, "/metrics"),
        (b"GET / HTTP/1.0\n\n", 200, "/metrics"),
        (b"GET /status?now HTTP/1.1\r\n\r\n", 200, "\"workers\":[]"),
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
fn an_endless_request_is_refused_long_before_its_end() {
    let server = server();
    let endless = vec![b'a'; DRAIN_BYTES / 2];
    let answer = send(&server, &endless);
    assert_eq!(code(&answer), 414, "{answer}");
    let answer = send(&server, &[b"GET / HTTP/1.1\r\nCookie: ".as_slice(), &endless].concat());
    assert_eq!(code(&answer), 431, "{answer}");
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let server = server();
    for path in ["/", "/status", "/metrics", "/livez", "/readyz", "/nowhere"] {
        let without_date =
            |head: &str| head.lines().filter(|line| !line.starts_with("Date: ")).map(str::to_owned).collect::<Vec<_>>();
        let answer = send(&server, format!("HEAD {path} HTTP/1.1\r\n\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(without_date(head), without_date(&get(&server, path).0), "{path}");
        assert_eq!(body, "", "{path}");
    }
}

#[test]
fn answers_allow_no_script_but_that_of_the_page() {
    let server = server();
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/status", "application/json"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/<script>", "text/plain; charset=utf-8"),
    ] {
        let (head, _) = get(&server, path);
        for line in [
            &format!("Content-Type: {content_type}"),
            "X-Content-Type-Options: nosniff",
            "Cache-Control: no-store",
            &format!("Content-Security-Policy: {}", *page::POLICY),
        ] {
            assert!(head.lines().any(|sent| sent == line), "{path}: {line}\n{head}");
        }
    }
}

#[test]
fn the_status_lists_every_watched_worker_and_is_a_look_at_each() {
    let server = server();
    let (first, second) = (watch(&server, 1), watch(&server, 2));
    let status: serde_json::Value = serde_json::from_str(&get(&server, "/status").1).unwrap();
    let ids: Vec<&str> = status["workers"].as_array().unwrap().iter().filter_map(|w| w["worker_id"].as_str()).collect();
    assert_eq!(ids, [worker(1).to_string(), worker(2).to_string()]);
    let looks = || [&first, &second].map(|worker| worker.looks.load(Ordering::Relaxed));
    assert_eq!(looks(), [1, 1]);
    for path in ["/", "/metrics", "/livez", "/readyz", "/nowhere"] {
        get(&server, path);
        assert_eq!(looks(), [1, 1], "{path} looks");
    }
}

#[test]
fn status_page_turned_off_serves_and_looks_up_nothing() {
    let server = MetricsServer::builder(Metrics::new().unwrap()).status_page(false).bind("127.0.0.1:0").unwrap();
    let switches = watch(&server, 1);
    for path in ["/", "/status"] {
        let (head, body) = get(&server, path);
        assert_eq!(code(&head), 404, "{path}");
        assert!(body.contains("/readyz") && !body.contains("/status"), "{body}");
    }
    assert_eq!(switches.looks.load(Ordering::Relaxed), 0);
    assert_eq!(code(&get(&server, "/livez").0), 200);
}

#[test]
fn the_status_is_served_only_under_known_host_names() {
    let server =
        MetricsServer::builder(Metrics::new().unwrap()).allow_hosts(["ops.example"]).bind("localhost:0").unwrap();
    let asked =
        |path: &str, headers: &str| code(&send(&server, format!("GET {path} HTTP/1.1\r\n{headers}\r\n").as_bytes()));
    for path in ["/", "/status", "/status?now"] {
        for headers in ["", "Host: localhost:1\r\n", "hOsT:127.0.0.1\r\n", "X: y\r\nHost: OPS.example\r\n"] {
            assert_eq!(asked(path, headers), 200, "{path} {headers:?}");
        }
        for headers in [
            "Host: evil.example\r\n",
            "Host : evil.example:9090\r\n",
            "X: y\r\n host: evil.example\r\n",
            "Host: localhost\r\nHost: evil.example\r\n",
        ] {
            assert_eq!(asked(path, headers), 421, "{path} {headers:?}");
        }
    }
    for (path, expected) in [("/livez", 200), ("/readyz", 503), ("/metrics", 200), ("/nowhere", 404)] {
        assert_eq!(asked(path, "Host: evil.example\r\n"), expected, "{path}");
    }
    let answer = send(&server, b"HEAD /status HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!(code(&answer), 421);
    let answer = send(&server, b"GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert!(answer.contains("\"evil.example\"") && answer.contains("allow_hosts"), "{answer}");
    let answer = send(&server, b"GET /status HTTP/1.1\r\n\r\nHost: evil.example\r\n\r\n");
    assert_eq!(code(&answer), 200, "what follows the head is no header");
    let off = MetricsServer::builder(Metrics::new().unwrap()).status_page(false).bind("127.0.0.1:0").unwrap();
    assert_eq!(code(&send(&off, b"GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n")), 404);
}

#[test]
fn an_address_in_use_and_a_bad_one_are_errors_that_name_it() {
    let server = server();
    let used = server.address().to_string();
    for address in [used.as_str(), "9090", "nonsense", "127.0.0.1:70000", ":9090", "192.0.2.1:0", ""] {
        let error = MetricsServer::builder(Metrics::new().unwrap()).bind(address).unwrap_err();
        assert!(matches!(&error, Error::Http { address: named, .. } if named == address), "{address}: {error}");
    }
    let error = MetricsServer::builder(Metrics::new().unwrap()).bind("9090").unwrap_err().with_causes();
    assert!(error.contains("such as 0.0.0.0:9090"), "{error}");
    server.shutdown();
    drop(MetricsServer::builder(Metrics::new().unwrap()).bind(&used).expect("the port is free after shutdown"));
}

#[test]
fn every_interface_can_be_bound_and_shut_down() {
    for address in ["0.0.0.0:0", "[::]:0", "localhost:0"] {
        let Ok(server) = MetricsServer::builder(Metrics::new().unwrap()).bind(address) else {
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

/// Expects an answer within 50 ms. On a busy machine it repeats the request, but only until the
/// server would give up a slow client.
fn answers_quickly(server: &MetricsServer, path: &str) {
    let first = Instant::now();
    let mut took = Vec::new();
    while took.last().is_none_or(|took| *took >= Duration::from_millis(50)) {
        assert!(first.elapsed() < REQUEST_TIME * 4 / 5, "{took:?}");
        let begun = Instant::now();
        assert_eq!(code(&get(server, path).0), 200);
        took.push(begun.elapsed());
    }
}

/// Shuts the server down, and expects that none of its threads is left: each of them holds a sender
/// of `ended`.
fn shut_down_at_once(server: MetricsServer) {
    let ended = server.ended.clone();
    let begun = Instant::now();
    server.shutdown();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "shutdown took {took:?}");
    assert_eq!(ended.recv_timeout(SOON).unwrap_err(), RecvTimeoutError::Disconnected, "a thread goes on");
}

#[test]
fn half_a_request_line_delays_no_other_client() {
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
fn clients_that_do_not_read_delay_no_other_client() {
    let registry = prometheus::Registry::new();
    let metrics = Metrics::in_registry(&registry).unwrap();
    // This is more than the sockets' buffers hold, so each answer blocks halfway.
    let help = "a".repeat(16 * 1024 * 1024);
    registry.register(Box::new(prometheus::IntGauge::new("large", help).unwrap())).unwrap();
    let server = MetricsServer::builder(metrics).bind("127.0.0.1:0").unwrap();
    let mut stuck: Vec<TcpStream> = (0..3).map(|_| connect(&server)).collect();
    for stream in &mut stuck {
        for _ in 0..100 {
            _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
        }
    }
    for stream in &stuck {
        // The first byte has arrived, so the answer is being sent.
        stream.peek(&mut [0]).unwrap();
    }
    assert_eq!(server.connections.open.lock().len(), stuck.len());
    answers_quickly(&server, "/livez");
    shut_down_at_once(server);
}

#[test]
fn idle_connections_delay_no_other_client() {
    let server = server();
    let idle: Vec<TcpStream> = (0..many()).map(|_| connect(&server)).collect();
    answers_quickly(&server, "/metrics");
    // The newest idle connections were opened after the one that was answered.
    eventually("the newest of the idle ones stay", || {
        assert_eq!(code(&get(&server, "/livez").0), 200);
        (MOST_CONNECTIONS / 2..=MOST_CONNECTIONS).contains(&server.connections.open.lock().len())
    });
    drop(idle);
    shut_down_at_once(server);
}

/// Acts every five milliseconds until it is stopped. Acting more often would displace a scrape that
/// waits for this machine, not for the server.
fn again_and_again(begun: &Barrier, stopped: &Receiver<()>, mut act: impl FnMut()) {
    begun.wait();
    while stopped.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
        act();
    }
}

/// Sends the head of a request byte by byte on as many connections as there are seats, and opens
/// another one for each that is lost.
fn dawdle(address: SocketAddr, begun: &Barrier, stopped: &Receiver<()>) {
    let mut clients: VecDeque<TcpStream> = VecDeque::new();
    again_and_again(begun, stopped, || {
        let known = clients.pop_front().filter(|_| clients.len() + 1 >= MOST_CONNECTIONS);
        let client = known.map_or_else(|| connect_to(address), Ok);
        if let Ok(mut client) = client
            && client.write_all(b"G").is_ok()
        {
            clients.push_back(client);
        }
    });
}

#[test]
fn all_kinds_of_abuse_at_once_delay_no_other_client() {
    let server = server();
    let address = server.address();
    let idle: Vec<TcpStream> = (0..many()).map(|_| connect(&server)).collect();
    let long = "a".repeat(LONGEST_HEAD);
    let requests = [
        format!("GET /{long} HTTP/1.1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nCookie: {long}\r\n\r\n"),
        "GET /nowhere HTTP/1.1\r\n\r\n".to_owned(),
        "BREW /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".to_owned(),
    ];
    let begun = Barrier::new(requests.len() + 2);
    let (stop, stopped) = bounded::<()>(0);
    thread::scope(|scope| {
        // Dropped also when an assertion fails.
        let stop = stop;
        let (begun, stopped) = (&begun, &stopped);
        for request in &requests {
            // Once the server is gone, no client can connect.
            scope.spawn(move || again_and_again(begun, stopped, || _ = send_to(address, request.as_bytes())));
        }
        scope.spawn(move || dawdle(address, begun, stopped));
        begun.wait();
        let first = Instant::now();
        let mut took: Vec<Duration> = (0..51)
            .map(|_| {
                let begun = Instant::now();
                let answer = send_to(address, b"GET /metrics HTTP/1.1\r\n\r\n").unwrap_or_default();
                // A client whose connection was closed would have to connect again.
                if answer.starts_with("HTTP/1.0 200 ") { begun.elapsed() } else { SOON }
            })
            .collect();
        assert!(first.elapsed() < REQUEST_TIME, "then it was time that drove them away: {took:?}");
        took.sort_unstable();
        let median = took[took.len() / 2];
        println!("{} idle and all the others: a scrape takes {median:?}, {:?} at the most", idle.len(), took.last());
        assert!(median < Duration::from_millis(50), "{took:?}");
        shut_down_at_once(server);
        drop(stop);
    });
}

/// Connects from another address of this host.
fn connect_from(from: Ipv4Addr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&address.into(), Duration::from_secs(1))?;
    Ok(socket.into())
}

/// Opens connections as fast as possible, sends the same bytes on each, and keeps a few hundred
/// open. Returns how many it opened.
fn flood(from: Ipv4Addr, address: SocketAddr, bytes: &[u8], begun: &Barrier, stopped: &Receiver<()>) -> usize {
    let (mut clients, mut opened) = (VecDeque::new(), 0);
    begun.wait();
    while stopped.try_recv() == Err(TryRecvError::Empty) {
        if let Ok(mut client) = connect_from(from, address) {
            _ = client.write_all(bytes);
            clients.push_back(client);
            opened += 1;
        }
        if clients.len() > 300 {
            clients.pop_front();
        }
    }
    opened
}

/// The kubelet's timeout, if it is set to twice the default of one second.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests `/livez` as the kubelet does.
fn probe(address: SocketAddr) -> io::Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.write_all(b"GET /livez HTTP/1.1\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let took = begun.elapsed();
    let is_good = answer.starts_with("HTTP/1.0 200 ") && took < PROBE_TIMEOUT;
    if is_good { Ok(took) } else { Err(io::Error::other(format!("after {took:?}: {answer:?}"))) }
}

/// A client that opens connections without end delays no probe beyond the kubelet's usual timeout.
#[test]
fn a_flood_of_connections_starves_no_probe() {
    const FLOODERS: usize = 2;
    many();
    let (here, elsewhere) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2));
    let request = b"GET /metrics HTTP/1.1\r\n\r\n";
    for (from, bytes) in [(elsewhere, &b""[..]), (elsewhere, b"G"), (elsewhere, request), (here, b""), (here, b"G")] {
        let server = server();
        let address = server.address();
        let begun = Barrier::new(FLOODERS + 1);
        let (stop, stopped) = bounded::<()>(0);
        thread::scope(|scope| {
            // Dropped also when an assertion fails.
            let stop = stop;
            let (begun, stopped) = (&begun, &stopped);
            let floods: Vec<_> =
                (0..FLOODERS).map(|_| scope.spawn(move || flood(from, address, bytes, begun, stopped))).collect();
            begun.wait();
            let took: io::Result<Vec<Duration>> = (1..=50).map(|_| probe(address)).collect();
            drop(stop);
            let opened: usize = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
            let slowest = took.as_ref().map(|took| took.iter().max());
            println!(
                "{opened} connections from {from} that send {} bytes: the slowest probe took {slowest:?}",
                bytes.len()
            );
            assert!(took.is_ok(), "a probe has no answer within {PROBE_TIMEOUT:?}: {took:?}");
        });
    }
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
