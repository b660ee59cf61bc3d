//! The head of a request: its first line and its headers. Pure.

use std::str::FromStr;

use tiny_http::Method;

/// The most bytes of a request's first line and headers together.
pub(super) const LONGEST_HEAD: usize = 8 * 1024;

/// The code and the reason with which a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) u16, pub(super) &'static str);

/// The parts of a request that the server uses.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    /// The headers: their names in lower case, and their values.
    headers: Vec<(String, String)>,
    /// What has arrived after the head: the beginning of the body.
    pub(super) rest: Vec<u8>,
}

impl Request {
    /// The values of a header, in the order of the request. The name must be in lower case.
    pub(super) fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The only value of a header; `None` if there is none, or more than one.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// The `Host` headers. More than one is an error; none is usual in HTTP/1.0.
    pub(super) fn hosts(&self) -> Vec<String> {
        self.headers("host").map(str::to_owned).collect()
    }
}

/// Parses the first line and the headers.
pub(super) fn parse(head: &[u8]) -> Result<Request, Refusal> {
    let mut lines = head.split_inclusive(|&byte| byte == b'\n');
    let Some(line) = lines.next().filter(|line| line.ends_with(b"\n") && line.len() <= LONGEST_HEAD) else {
        return Err(Refusal(414, "the request line is too long"));
    };
    if head.len() > LONGEST_HEAD && !ends_within(head, LONGEST_HEAD) {
        return Err(Refusal(431, "the headers are too long"));
    }
    let mut end = line.len();
    let line = String::from_utf8_lossy(line);
    let mut words = line.trim_end_matches('\n').trim_end_matches('\r').split(' ');
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
    let path = target.split(['?', '#']).next().unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    for line in lines {
        end += line.len();
        let line = line.trim_ascii();
        if line.is_empty() {
            break;
        }
        headers.extend(header(line));
    }
    Ok(Request { method, path, headers, rest: head[end..].to_vec() })
}

/// Whether the empty line that ends the head is among the first bytes.
fn ends_within(head: &[u8], bytes: usize) -> bool {
    super::clients::ends_head(&head[..head.len().min(bytes)])
}

/// The name of a header in lower case, and its value; `None` if the line has no colon.
fn header(line: &[u8]) -> Option<(String, String)> {
    let line = String::from_utf8_lossy(line);
    let (name, value) = line.split_once(':')?;
    Some((name.trim_end().to_ascii_lowercase(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_any_case_and_the_body_begins_after_them() {
        let head = b"POST /a?b HTTP/1.1\r\nHost: one\r\nhOSt : two\nX:  y z \r\nno colon\r\n\r\n{\"a\": 1}\n\n";
        let request = parse(head).ok().unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/a"));
        assert_eq!(request.hosts(), ["one", "two"]);
        assert_eq!((request.header("x"), request.header("host"), request.header("y")), (Some("y z"), None, None));
        assert_eq!(request.rest, b"{\"a\": 1}\n\n");
    }

    #[test]
    fn long_body_behind_the_head_does_not_make_the_head_long() {
        let head = [b"POST / HTTP/1.1\n\n".as_slice(), &[b'a'; LONGEST_HEAD]].concat();
        assert_eq!(parse(&head).ok().unwrap().rest.len(), LONGEST_HEAD);
        let long = [b"POST / HTTP/1.1\nX: ".as_slice(), &[b'a'; LONGEST_HEAD], b"\n\n"].concat();
        assert_eq!(parse(&long).err(), Some(Refusal(431, "the headers are too long")));
    }
}
