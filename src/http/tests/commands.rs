//! Commands by HTTP, as far as they need no database.

use super::*;
use crate::http::body::LONGEST_BODY;
use crate::http::operating::MOST_COMMANDS;

const TOKEN: &str = "a-token-of-some-length";

/// A server that takes commands. Its worker has the projections `orders` and `a/b`, and asks for a
/// connection until the sender is dropped. Each attempt sends a message.
struct Taking {
    server: MetricsServer,
    attempts: Receiver<()>,
    answer: crossbeam_channel::Sender<()>,
}

fn taking() -> Taking {
    let server = MetricsServer::builder(Metrics::new().unwrap()).operator(TOKEN).bind("127.0.0.1:0").unwrap();
    let (attempt, attempts) = crossbeam_channel::unbounded();
    let (answer, answered) = crossbeam_channel::unbounded::<()>();
    watch_projections(&server, 1, "main", &["orders", "a/b"], move || {
        _ = attempt.send(());
        _ = answered.recv();
    });
    Taking { server, attempts, answer }
}

fn watch_projections(
    server: &MetricsServer,
    number: u128,
    replica_set: &str,
    names: &[&str],
    connect: impl Fn() + Send + Sync + 'static,
) {
    let lanes = names.iter().map(|name| ((*name).to_owned(), 1));
    let board = Board::new(worker(number), replica_set, Limits::new(SOON, SOON, SOON, false), lanes);
    let refused = || Err("not of interest".to_owned());
    server.watch(HealthProbe::new(
        refused,
        refused,
        move || board.read(),
        || None,
        move || {
            connect();
            Err(Error::config("database", "none", "this worker has none"))
        },
    ));
}

/// A request with the token and a body.
fn request(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{body}")
}

fn with_token(path: &str, body: &str) -> String {
    request(path, &format!("Authorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n", body.len()), body)
}

/// The error in the body of an answer.
#[track_caller]
fn error(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nContent-Type: application/json\r\n"), "{answer}");
    assert!(!head.to_ascii_lowercase().contains("access-control-"), "{answer}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body["error"].as_str().unwrap().to_owned()
}

const PAUSE: &str = r#"{"reason": "r"}"#;

#[test]
fn commands_are_off_by_default() {
    let server = server();
    watch_projections(&server, 1, "main", &["orders"], || {});
    for request in [
        with_token("/projections/orders/pause", PAUSE),
        "GET /projections/orders/pause HTTP/1.1\r\n\r\n".to_owned(),
        "OPTIONS /projections/orders/pause HTTP/1.1\r\n\r\n".to_owned(),
    ] {
        let answer = send(&server, request.as_bytes());
        assert_eq!(code(&answer), 404, "{answer}");
        assert!(!answer.contains("projections/"), "{answer}");
    }
    assert!(get(&server, "/").1.contains("<body data-commands=\"off\">"));
}

#[test]
fn nothing_is_done_without_the_token() {
    let taking = taking();
    for headers in [
        String::new(),
        "Authorization: Bearer\r\n".into(),
        "Authorization: Bearer wrong-token-of-some-length\r\n".into(),
        format!("Authorization: Basic {TOKEN}\r\n"),
        format!("Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n"),
        format!("Authorization: Bearer {TOKEN}, Bearer {TOKEN}\r\n"),
        format!("Cookie: token={TOKEN}\r\n"),
        format!("X-Authorization: Bearer {TOKEN}\r\n"),
    ] {
        for path in ["/projections/orders/pause", "/projections/nothing/at-all", "/projections/"] {
            let sent = request(path, &format!("{headers}Content-Length: {}\r\n", PAUSE.len()), PAUSE);
            let answer = send(&taking.server, sent.as_bytes());
            assert_eq!(code(&answer), 401, "{headers}: {answer}");
            assert!(answer.contains("\r\nWWW-Authenticate: Bearer\r\n"), "{answer}");
            assert!(error(&answer).contains("Authorization: Bearer"), "{answer}");
        }
    }
    // The token in the address counts for nothing, and neither does a body that never comes.
    let path = format!("/projections/orders/pause?token={TOKEN}");
    let answer = send(&taking.server, request(&path, "Content-Length: 1000\r\n", "").as_bytes());
    assert_eq!(code(&answer), 401, "{answer}");
    assert!(taking.attempts.is_empty());
}

#[test]
fn other_methods_and_foreign_hosts_are_refused() {
    let taking = taking();
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let sent = format!("{method} /projections/orders/pause HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        let answer = send(&taking.server, sent.as_bytes());
        assert_eq!(code(&answer), 405, "{answer}");
        assert!(answer.contains("\r\nAllow: POST\r\n"), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("access-control-"), "{answer}");
    }
    let foreign = with_token("/projections/orders/pause", PAUSE).replace("Host: localhost", "Host: evil.example");
    assert_eq!(code(&send(&taking.server, foreign.as_bytes())), 421);
    assert!(taking.attempts.is_empty());
}

#[test]
fn bad_requests_are_answered_with_the_reason() {
    let taking = taking();
    let auth = format!("Authorization: Bearer {TOKEN}\r\n");
    let huge = "a".repeat(LONGEST_BODY + 1);
    let pause = "/projections/orders/pause";
    for (sent, expected, part) in [
        (with_token("/projections/orders/remove", ""), 404, "no such command"),
        (with_token("/projections/orders", ""), 404, "/projections/NAME/COMMAND"),
        (with_token("/projections/%zz/pause", PAUSE), 404, "UTF-8"),
        (with_token("/projections/others/pause", PAUSE), 404, "no worker of this process"),
        (with_token(pause, ""), 400, "needs a \"reason\""),
        (with_token(pause, "{\"reason\": \"r\""), 400, "must be a JSON object"),
        (with_token(pause, "reason=r"), 400, "must be a JSON object"),
        (with_token(pause, r#"{"reason": "r", "replica_set": "other"}"#), 404, "no worker of this process"),
        (
            request(pause, &format!("{auth}Transfer-Encoding: chunked\r\n"), "f\r\n{\"reason\": \"r\"}\r\n0\r\n\r\n"),
            411,
            "chunks",
        ),
        (
            request(pause, &format!("{auth}Transfer-Encoding: chunked\r\nContent-Length: 15\r\n"), PAUSE),
            411,
            "Content-Length",
        ),
        (request(pause, &format!("{auth}Content-Length: x\r\n"), PAUSE), 400, "one number"),
        (request(pause, &format!("{auth}Content-Length: +15\r\n"), PAUSE), 400, "one number"),
        (request(pause, &format!("{auth}Content-Length: 15\r\nContent-Length: 15\r\n"), PAUSE), 400, "one number"),
        (request(pause, &format!("{auth}Content-Length: 99999999999999999999999\r\n"), ""), 413, "64 KiB"),
        (with_token(pause, &huge), 413, "64 KiB"),
    ] {
        let answer = send(&taking.server, sent.as_bytes());
        let shown: String = sent.chars().take(300).collect();
        assert_eq!(code(&answer), expected, "{shown}: {answer}");
        assert!(error(&answer).contains(part), "{shown}: {answer}");
    }
    assert!(taking.attempts.is_empty(), "the database was asked");
}

#[test]
fn body_may_come_in_pieces_and_of_any_type() {
    let taking = taking();
    drop(taking.answer);
    let body = format!("{{\"reason\": \"{}\"}}", "x".repeat(LONGEST_BODY - 20));
    for headers in ["", "Content-Type: application/x-www-form-urlencoded\r\n", "Expect: 100-continue\r\n"] {
        let mut stream = connect(&taking.server);
        let length = format!("Content-Length: {}\r\n", body.len());
        let sent =
            request("/projections/a%2Fb/pause", &format!("Authorization: bearer {TOKEN}\r\n{length}{headers}"), &body);
        // What follows the body is no other request.
        for part in [sent.as_bytes(), b"POST /projections/orders/pause HTTP/1.1\r\n\r\n"].concat().chunks(10_000) {
            stream.write_all(part).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (interim, answer) = answer.split_at(if headers.starts_with("Expect") { 25 } else { 0 });
        assert!(interim.is_empty() || interim == "HTTP/1.1 100 Continue\r\n\r\n", "{interim}");
        assert_eq!((code(answer), answer.matches("HTTP/1.").count()), (503, 1), "{answer}");
        assert!(error(answer).contains("this worker has none"), "{answer}");
        taking.attempts.try_recv().unwrap();
    }
    assert!(taking.attempts.is_empty());
}

#[test]
fn body_that_does_not_come_is_given_up_in_time() {
    let taking = taking();
    let mut stream = connect(&taking.server);
    let headers = format!("Authorization: Bearer {TOKEN}\r\nContent-Length: 15\r\n");
    let begun = Instant::now();
    stream.write_all(request("/projections/orders/pause", &headers, "{\"re").as_bytes()).unwrap();
    answers_quickly(&taking.server, "/metrics");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(begun.elapsed() >= REQUEST_TIME && begun.elapsed() < REQUEST_TIME + SOON);
    assert_eq!(code(&answer), 408, "{answer}");

    let mut short = connect(&taking.server);
    short.write_all(request("/projections/orders/pause", &headers, "{\"re").as_bytes()).unwrap();
    short.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    short.read_to_string(&mut answer).unwrap();
    assert_eq!(code(&answer), 400, "{answer}");
    assert!(taking.attempts.is_empty());
}

/// The database does not answer.
#[test]
fn waiting_commands_delay_neither_probes_nor_the_shutdown() {
    let taking = taking();
    let mut waiting: Vec<TcpStream> = (0..MOST_COMMANDS).map(|_| connect(&taking.server)).collect();
    for stream in &mut waiting {
        stream.write_all(with_token("/projections/orders/pause", PAUSE).as_bytes()).unwrap();
        taking.attempts.recv_timeout(SOON).unwrap();
    }
    let answer = send(&taking.server, with_token("/projections/orders/pause", PAUSE).as_bytes());
    assert_eq!(code(&answer), 503, "{answer}");
    assert!(answer.contains("\r\nRetry-After: 1\r\n") && error(&answer).contains("already"), "{answer}");
    answers_quickly(&taking.server, "/metrics");

    // The command of a client that is gone keeps its place.
    taking.server.connections.open.lock().close_all();
    let answer = send(&taking.server, with_token("/projections/orders/pause", PAUSE).as_bytes());
    assert_eq!(code(&answer), 503, "{answer}");
    taking.answer.send(()).unwrap();
    eventually("a place is free", || {
        let answer = send(&taking.server, with_token("/projections/others/pause", PAUSE).as_bytes());
        assert_eq!(code(&answer), 404, "{answer}");
        let mut stream = connect(&taking.server);
        stream.write_all(with_token("/projections/orders/pause", PAUSE).as_bytes()).unwrap();
        taking.attempts.recv_timeout(Duration::from_millis(10)).is_ok()
    });
    // Earlier than the server would give the database up.
    let ended = taking.server.ended.clone();
    taking.server.shutdown();
    let heard = ended.recv_timeout(Duration::from_secs(5));
    assert_eq!(heard.unwrap_err(), RecvTimeoutError::Disconnected, "a thread still waits for the database");
}

#[test]
fn replica_set_has_to_be_named_if_there_are_several() {
    let taking = taking();
    drop(taking.answer);
    watch_projections(&taking.server, 2, "second", &["orders"], || {});
    watch_projections(&taking.server, 3, "main", &["orders"], || {});
    let answer = send(&taking.server, with_token("/projections/orders/pause", PAUSE).as_bytes());
    assert_eq!(code(&answer), 409, "{answer}");
    assert!(error(&answer).contains("replica_set"), "{answer}");
    let named = r#"{"reason": "r", "replica_set": "second"}"#;
    let answer = send(&taking.server, with_token("/projections/orders/pause", named).as_bytes());
    assert_eq!(code(&answer), 503, "it has no database: {answer}");
}

#[test]
fn weak_token_is_refused_when_the_server_begins() {
    for token in ["", "short"] {
        let builder = MetricsServer::builder(Metrics::new().unwrap()).operator(token);
        let error = builder.bind("127.0.0.1:0").unwrap_err();
        assert!(error.is_config() && error.to_string().contains("at least 16 bytes"), "{error}");
    }
    let builder = MetricsServer::builder(Metrics::new().unwrap()).operator(TOKEN);
    assert!(!format!("{builder:?}").contains("a-token"), "{builder:?}");
    let server = builder.bind("127.0.0.1:0").unwrap();
    assert!(!format!("{server:?}").contains("a-token"), "{server:?}");
    for path in ["/", "/status", "/metrics", "/nowhere"] {
        let (_, body) = get(&server, path);
        assert!(!body.contains("a-token"), "{path}");
    }
    assert!(get(&server, "/").1.contains("<body data-commands=\"on\">"));
    assert!(get(&server, "/nowhere").1.contains("/projections/NAME/pause"));
}
