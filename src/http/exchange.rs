//! One request and one response, each with a deadline.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tiny_http::{HTTPVersion, Header, Method, Response};

use super::asked;
use super::clients::{Client, ends_head};
use super::page::POLICY;
use super::reply::Page;
use super::request::{LONGEST_HEAD, Refusal, Request, parse};
use super::site::Site;
use super::timed::Timed;

/// The time from the accept to the last byte of the request, which may have a body.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(5);
/// The time from the first byte of the response to the last.
const RESPONSE_TIME: Duration = Duration::from_secs(10);

pub(super) fn answer(site: &Site, from: &Client) -> io::Result<()> {
    let mut client = Timed { stream: &from.stream, until: Instant::now() + REQUEST_TIME };
    let Some(head) = read_head(&mut client)? else { return Ok(()) };
    from.has_asked.store(true, Ordering::Relaxed);
    let (method, page) = match parse(&head) {
        Ok(request) => {
            let Some(page) = respond_to(site, &request, &mut client, from) else { return Ok(()) };
            (request.method, page)
        }
        Err(Refusal(code, reason)) => (Method::Get, Page::text(code, reason)),
    };
    let may_send_more = method == Method::Post || (400..500).contains(&page.code);
    client.until = Instant::now() + RESPONSE_TIME;
    client.write_all(&print(&page, &method)?)?;
    if may_send_more {
        client.drain()?;
    }
    Ok(())
}

/// Returns the response; `None` if the client has gone meanwhile.
fn respond_to(site: &Site, request: &Request, client: &mut Timed<'_>, from: &Client) -> Option<Page> {
    let hosts = request.hosts();
    if let Some(operating) = &site.operating
        && asked::is_command(&request.path)
    {
        let refused = site.misdirected(&hosts);
        return refused.map_or_else(|| operating.respond(&site.probes(), request, client, from), Some);
    }
    Some(match site.page(&request.path, &hosts) {
        None => site.missing(),
        Some(page) if matches!(request.method, Method::Get | Method::Head) => page,
        Some(_) => Page::text(405, "only GET and HEAD are served").with(&[("Allow", "GET, HEAD")]),
    })
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

/// Formats the response as HTTP/1.0, which tells the client that the connection ends with it.
fn print(page: &Page, method: &Method) -> io::Result<Vec<u8>> {
    let mut headers = vec![
        header("Server", "pupsourcing-orchestrator")?,
        header("Content-Type", page.content_type)?,
        header("Cache-Control", "no-store")?,
        header("Content-Security-Policy", &POLICY)?,
        header("X-Content-Type-Options", "nosniff")?,
        header("Referrer-Policy", "no-referrer")?,
    ];
    for (field, value) in page.headers {
        headers.push(header(field, value)?);
    }
    let mut bytes = Vec::with_capacity(page.body.len() + 1024);
    let length = page.body.len();
    let response = Response::new(page.code.into(), headers, page.body.as_bytes(), Some(length), None);
    response.raw_print(&mut bytes, HTTPVersion(1, 0), &[], *method == Method::Head, None)?;
    Ok(bytes)
}

fn header(field: &str, value: &str) -> io::Result<Header> {
    Header::from_bytes(field, value).map_err(|()| io::Error::new(ErrorKind::InvalidData, format!("header {field}")))
}
