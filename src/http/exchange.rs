//! One request and one response, each with a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tiny_http::{HTTPVersion, Header, Method, Response};

use super::clients::{Client, ends_head};
use super::page::POLICY;
use super::site::{Page, Site};

/// The most bytes of a request's first line and headers together.
pub(super) const LONGEST_HEAD: usize = 8 * 1024;
/// The time from the accept to the last byte of the request's head.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(5);
/// The time from the first byte of the response to the last.
const RESPONSE_TIME: Duration = Duration::from_secs(10);
/// How long the server reads from a refused client, so that the client reads its answer before the
/// connection is reset.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// How many bytes the server reads from a refused client at most.
pub(super) const DRAIN_BYTES: usize = 1024 * 1024;

/// The code and the reason with which a request is refused.
pub(super) struct Refusal(u16, &'static str);

/// The parts of a request that the server uses.
pub(super) struct Request {
    method: Method,
    path: String,
    /// The `Host` headers. More than one is an error; none is usual in HTTP/1.0.
    hosts: Vec<String>,
}

pub(super) fn answer(site: &Site, from: &Client) -> io::Result<()> {
    let mut client = Timed { stream: &from.stream, until: Instant::now() + HEAD_TIME };
    let (method, page, allow) = match read_head(&mut client)? {
        Some(head) => {
            from.has_asked.store(true, Ordering::Relaxed);
            match parse(&head) {
                Ok(request) => respond_to(site, request),
                Err(refusal) => refused(&refusal),
            }
        }
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

pub(super) fn respond_to(site: &Site, request: Request) -> (Method, Page, bool) {
    let Request { method, path, hosts } = request;
    match site.page(&path, &hosts) {
        None => (method, site.missing(), false),
        Some(page) if matches!(method, Method::Get | Method::Head) => (method, page, false),
        Some(_) => (method, Page::text(405, "only GET and HEAD are served"), true),
    }
}

pub(super) fn refused(refusal: &Refusal) -> (Method, Page, bool) {
    (Method::Get, Page::text(refusal.0, refusal.1), false)
}

/// Reads the request line and the headers; `None` if the client closes the connection before the
/// end of the request, or takes too long.
pub(super) fn read_head(client: &mut Timed<'_>) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::with_capacity(1024);
    let mut part = [0; 1024];
    while head.len() <= LONGEST_HEAD {
        let read = match client.read(&mut part) {
            Ok(0) => return Ok(None),
            Ok(read) => read,
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => continue,
                // Which of the two errors means a timeout depends on the operating system.
                ErrorKind::TimedOut | ErrorKind::WouldBlock => return Ok(None),
                _ => return Err(error),
            },
        };
        // The end may be split between two reads, with at most three bytes in the first.
        let looked_at = head.len().saturating_sub(3);
        head.extend_from_slice(&part[..read]);
        if ends_head(&head[looked_at..]) {
            break;
        }
    }
    Ok(Some(head))
}

/// Parses the first line and the `Host` headers. No answer depends on another header.
pub(super) fn parse(head: &[u8]) -> Result<Request, Refusal> {
    let mut lines = head.split(|&byte| byte == b'\n');
    let Some(line) = lines.next().filter(|line| line.len() < head.len().min(LONGEST_HEAD)) else {
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
    Ok(Request { method, path: path.to_owned(), hosts: lines.map_while(header_line).filter_map(host).collect() })
}

/// Returns a line of the headers; `None` for the empty line that ends them.
fn header_line(line: &[u8]) -> Option<&[u8]> {
    Some(line.trim_ascii()).filter(|line| !line.is_empty())
}

fn host(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line);
    let (field, value) = line.split_once(':')?;
    field.trim_end().eq_ignore_ascii_case("host").then(|| value.trim().to_owned())
}

/// Formats the response as HTTP/1.0, which tells the client that the connection ends with it.
pub(super) fn print(page: &Page, method: &Method, allow: bool) -> io::Result<Vec<u8>> {
    let mut headers = vec![
        header("Server", "pupsourcing-orchestrator")?,
        header("Content-Type", page.content_type)?,
        header("Cache-Control", "no-store")?,
        header("Content-Security-Policy", &POLICY)?,
        header("X-Content-Type-Options", "nosniff")?,
        header("Referrer-Policy", "no-referrer")?,
    ];
    if allow {
        headers.push(header("Allow", "GET, HEAD")?);
    }
    let mut bytes = Vec::with_capacity(page.body.len() + 1024);
    let length = page.body.len();
    let response = Response::new(page.code.into(), headers, page.body.as_bytes(), Some(length), None);
    response.raw_print(&mut bytes, HTTPVersion(1, 0), &[], *method == Method::Head, None)?;
    Ok(bytes)
}

pub(super) fn header(field: &str, value: &str) -> io::Result<Header> {
    Header::from_bytes(field, value).map_err(|()| io::Error::new(ErrorKind::InvalidData, format!("header {field}")))
}

/// A stream with one deadline for everything that is read or written. A client that sends single
/// bytes does not extend the deadline.
pub(super) struct Timed<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    /// Reads and discards what a refused client still sends. If the server closed the connection
    /// with unread input, the connection would be reset, and the client might lose the answer.
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
