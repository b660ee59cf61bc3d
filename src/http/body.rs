//! Reads the body of a request.

use std::io::{ErrorKind, Read as _, Write as _};

use super::request::{Refusal, Request};
use super::timed::Timed;

/// The most bytes of a body: much more than a reason and the arguments of a command need.
pub(super) const LONGEST_BODY: usize = 64 * 1024;

/// Reads the body. It must have a length, and must arrive before the deadline of the stream.
pub(super) fn read_body(request: &Request, client: &mut Timed<'_>) -> Result<Vec<u8>, Refusal> {
    let length = length(request)?;
    let mut body = request.rest.clone();
    if request.header("expect").is_some_and(|expected| expected.eq_ignore_ascii_case("100-continue")) {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(|_| LOST)?;
    }
    let mut part = [0; 4096];
    while body.len() < length {
        match client.read(&mut part) {
            Ok(0) => return Err(Refusal(400, "the body is shorter than its Content-Length")),
            Ok(read) => body.extend_from_slice(&part[..read]),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                // Which of the two errors means a timeout depends on the operating system.
                ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                    return Err(Refusal(408, "the body has not arrived in time"));
                }
                _ => return Err(LOST),
            },
        }
    }
    // What follows is another request, and each connection has one.
    body.truncate(length);
    Ok(body)
}

/// The client will not read this.
const LOST: Refusal = Refusal(400, "the connection was lost");

/// The length of the body; 0 if the request says nothing about it.
fn length(request: &Request) -> Result<usize, Refusal> {
    if request.headers("transfer-encoding").next().is_some() {
        return Err(Refusal(411, "a body in chunks is not taken: send it with a Content-Length"));
    }
    if request.headers("content-length").next().is_none() {
        return Ok(0);
    }
    let given =
        request.header("content-length").filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    let Some(digits) = given else {
        return Err(Refusal(400, "the Content-Length must be one number"));
    };
    // A number that is too long for the type is too large as well.
    match digits.parse() {
        Ok(length) if length <= LONGEST_BODY => Ok(length),
        _ => Err(Refusal(413, "the body must have at most 64 KiB")),
    }
}
