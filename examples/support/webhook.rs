//! Posts to a receiver over plain HTTP/1.1, with a deadline for the whole request. A program with a
//! client library for HTTP sets the same deadline there.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// The most bytes of a response before its first line ends.
const LONGEST_LINE: usize = 8 * 1024;

/// Posts a JSON body with this idempotency key, and returns the status of the response. Fails if
/// there is no response in time.
pub(crate) fn post(address: &str, key: &str, body: &str, until: Instant) -> io::Result<u16> {
    let resolved = address.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&resolved, left(until)?)?;
    stream.set_write_timeout(Some(left(until)?))?;
    let request = format!(
        "POST /events HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nIdempotency-Key: {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    // Each read has only what is left, so that a receiver that sends byte by byte meets the
    // deadline, too.
    while !response.contains(&b'\n') && response.len() < LONGEST_LINE {
        stream.set_read_timeout(Some(left(until)?))?;
        let mut part = [0; 512];
        match stream.read(&mut part)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => response.extend_from_slice(&part[..count]),
        }
    }
    status(&response).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// The status in a line such as `HTTP/1.1 204 No Content`.
fn status(response: &[u8]) -> Option<u16> {
    let line = response.split(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.trim().parse().ok()
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}
