//! A client for the metrics server, and for Prometheus.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take; every one of them comes from memory.
const PATIENCE: Duration = Duration::from_secs(15);

/// Status and body.
#[track_caller]
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    ask(address, address, path, "HTTP/1.1")
}

/// The same, under a host name.
#[track_caller]
pub(crate) fn get_as(host: &str, address: &str, path: &str) -> (u16, String) {
    ask(host, address, path, "HTTP/1.1")
}

/// The same over HTTP/1.0, because the server would otherwise send long answers in chunks.
#[track_caller]
pub(crate) fn get_in_one_piece(address: &str, path: &str) -> (u16, String) {
    ask(address, address, path, "HTTP/1.0")
}

#[track_caller]
fn ask(host: &str, address: &str, path: &str, version: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} {version}\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Sends a body with a token. Returns the status, and the JSON of the answer.
#[track_caller]
pub(crate) fn post(address: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body.to_string();
    let head = format!("Host: {address}\r\nAuthorization: Bearer {token}\r\nContent-Length: {}", body.len());
    write!(stream, "POST {path} HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}
