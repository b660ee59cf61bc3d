//! Splits a libpq URL or key=value string into its parameters:
//! <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>.
//!
//! *Invariant:* no error contains a password, not even one that was not percent-encoded and
//! therefore ended up in another part of the URL. If that may have happened, an error names the
//! part but does not show its value.

use std::collections::BTreeMap;

use crate::error::Error;

pub(super) const EXAMPLE: &str = "postgres://user:password@host:5432/database";
pub(super) const ENCODE: &str =
    "in a user or password, write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25";

/// The parameters that are passed on to the `postgres` crate. Its `sslmode` and `tcp_user_timeout`
/// differ from libpq's, so they are not among them.
pub(super) const HANDED_ON: &[&str] = &[
    "user",
    "dbname",
    "options",
    "application_name",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
    "sslnegotiation",
];

/// Parameters of libpq that have no effect here if they have one of these values.
pub(super) const WITHOUT_EFFECT: &[(&str, &[&str])] = &[
    ("client_encoding", &["UTF8", "utf8", "UTF-8", "utf-8", "auto"]),
    ("gssencmode", &["disable", "prefer"]),
    ("sslcompression", &["0"]),
    ("sslsni", &["1"]),
];

/// The given value of one parameter.
pub(super) struct Given {
    pub(super) value: Vec<u8>,
    /// Whether an error may show the value.
    repeatable: bool,
}

pub(super) type Parameters = BTreeMap<String, Given>;

/// Returns the parameters of a URL or key=value string, by name. Parameters that were not given, or
/// are empty, are absent.
pub(super) fn split(text: &str) -> Result<Parameters, Error> {
    let text = text.trim_start();
    if text.is_empty() {
        return refuse(format!("it is empty; write {EXAMPLE}"));
    }
    match ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
        // Only a URL is trimmed at its end: in the other form, a \ may escape a space at the end.
        Some(rest) => split_url(rest.trim_end()),
        None => split_pairs(text),
    }
}

pub(super) fn refuse<T>(problem: impl Into<String>) -> Result<T, Error> {
    Err(Error::InvalidUrl { problem: problem.into() })
}

/// `[user[:password]@][host[:port],...][/database][?name=value[&...]]`
fn split_url(text: &str) -> Result<Parameters, Error> {
    let mut parameters = Parameters::new();
    // As in libpq, an @ after the first / is not the end of the credentials.
    let rest = match text.find(['@', '/']) {
        Some(at) if text[at..].starts_with('@') => {
            let (user, password) = match text[..at].split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (&text[..at], None),
            };
            set(&mut parameters, "user", decode("user", user)?, true);
            if let Some(password) = password {
                set(&mut parameters, "password", decode("password", password)?, false);
            }
            &text[at + 1..]
        }
        _ => text,
    };

    // An @ that is left over probably belongs to a password, and then the text around it does too.
    let repeatable = !rest.contains('@');
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    if place.contains('@') {
        return refuse(format!("there is one @ too many: {ENCODE}"));
    }
    let (authority, database) =
        place.split_once('/').map_or((place, ""), |(authority, database)| (authority, database));
    if !authority.is_empty() {
        split_authority(authority, &mut parameters)?;
    }
    set(&mut parameters, "dbname", decode("database", database)?, repeatable);

    let mut after_password = false;
    for parameter in query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        // The text after a password may be the rest of it, following an & that was not encoded.
        let repeatable = repeatable && !after_password;
        let Some((name, value)) = parameter.split_once('=') else {
            return refuse(match nameable(parameter, repeatable) {
                Some(name) => format!("parameter {name} has no value: write {name}=value"),
                None => "a parameter after the ? has no value: write name=value".to_owned(),
            });
        };
        let name = decode("name of a parameter", name)?;
        let Some(name) = std::str::from_utf8(&name).ok().filter(|name| is_known(name)) else {
            return unknown_parameter(&String::from_utf8_lossy(&name), repeatable);
        };
        set(&mut parameters, name, decode(name, value)?, repeatable);
        after_password = name == "password";
    }
    // JDBC writes `ssl=true`, and libpq accepts it in URLs.
    if let Some(given) = parameters.remove("ssl") {
        if given.value != b"true" {
            return refuse("ssl takes only the value true; use sslmode");
        }
        parameters.entry("sslmode".to_owned()).or_insert(Given { value: b"require".to_vec(), repeatable });
    }
    Ok(parameters)
}

/// `host[:port],...`; an IPv6 address is in brackets.
fn split_authority(authority: &str, parameters: &mut Parameters) -> Result<(), Error> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for (index, entry) in authority.split(',').enumerate() {
        let number = index + 1;
        let (host, port) = match entry.strip_prefix('[').map(|entry| entry.split_once(']')) {
            Some(Some((host, ""))) => (host, None),
            Some(Some((host, port))) if port.starts_with(':') => (host, Some(&port[1..])),
            Some(_) => return refuse(format!("host number {number}: a [ begins an IPv6 address, as in [::1]:5432")),
            None => match entry.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return refuse(format!(
                        "host number {number} has more than one colon: write an IPv6 address as [::1]:5432"
                    ));
                }
                Some((host, port)) => (host, Some(port)),
                None => (entry, None),
            },
        };
        let port = port.filter(|port| !port.is_empty()).unwrap_or("5432");
        // The error does not repeat the port: in user:password/database, where the host is missing,
        // it is the password.
        if port.parse::<u16>().map_or(true, |port| port == 0) {
            return refuse(format!(
                "the port of host number {number} is not a number from 1 to 65535; if it is a password, then the host is missing \
                 or a character is not encoded: {ENCODE}"
            ));
        }
        hosts.extend(index.checked_sub(1).map(|_| b','));
        hosts.extend(decode("host", host)?);
        ports.push(port);
    }
    set(parameters, "host", hosts, true);
    set(parameters, "port", ports.join(",").into_bytes(), true);
    Ok(())
}

/// `name = value name = 'value with spaces'`, with \ to escape a character.
fn split_pairs(text: &str) -> Result<Parameters, Error> {
    if let Some((scheme, _)) = text.split_once("://").filter(|(scheme, _)| !scheme.contains('=')) {
        return refuse(match nameable(&scheme.to_ascii_lowercase(), true) {
            Some(name) => {
                format!("its scheme is {name:?} where postgres:// or postgresql:// (in lower case) is expected")
            }
            None => format!("it does not begin with postgres:// or postgresql://; write {EXAMPLE}"),
        });
    }
    let mut parameters = Parameters::new();
    let mut rest = text;
    let mut previous = String::new();
    let mut repeatable = true;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            return refuse(match (previous.as_str(), nameable(name, repeatable)) {
                ("", _) => format!("it is neither a URL nor name=value; write {EXAMPLE}"),
                (_, Some(name)) => {
                    format!("{name} is not followed by =; a value with spaces needs quotes: name='some value'")
                }
                (_, None) => {
                    format!("what follows the value of {previous} is not name=value; a value with spaces needs quotes")
                }
            });
        };
        if !is_known(name) {
            return unknown_parameter(name, repeatable);
        }
        let (value, after) = take_value(name, after.trim_start())?;
        // The text after a password without quotes may be the rest of it. In `port= password=…`,
        // the password is a part of the port.
        let holds_password = value.contains("password");
        repeatable = name != "password" && !holds_password;
        set(&mut parameters, name, value.into_bytes(), !holds_password);
        name.clone_into(&mut previous);
        rest = after.trim_start();
    }
    Ok(parameters)
}

fn take_value<'a>(name: &str, text: &'a str) -> Result<(String, &'a str), Error> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            space if !quoted && space.is_whitespace() => return Ok((value, &text[at..])),
            other => value.push(other),
        }
    }
    if quoted { refuse(format!("the quoted value of {name} has no end")) } else { Ok((value, "")) }
}

fn decode(part: &str, text: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digit = |index: usize| after.get(index).and_then(|digit| char::from(*digit).to_digit(16));
        match digit(0).zip(digit(1)).and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) if byte != 0 => bytes.push(byte),
            _ => {
                return refuse(format!(
                    "the {part} holds a % that is not followed by two hexadecimal digits: write % as %25"
                ));
            }
        }
        rest = &after[2..];
    }
    Ok(bytes)
}

/// Sets a parameter. As in libpq, the last value wins, and an empty value counts as not given.
fn set(parameters: &mut Parameters, name: &str, value: Vec<u8>, repeatable: bool) {
    let name = if name == "keepalives_count" { "keepalives_retries" } else { name };
    if !value.is_empty() {
        parameters.insert(name.to_owned(), Given { value, repeatable: repeatable && name != "password" });
    }
}

fn is_known(name: &str) -> bool {
    const OURS: &[&str] = &[
        "password",
        "ssl",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "tcp_user_timeout",
        "keepalives_count",
        "fallback_application_name",
    ];
    HANDED_ON.contains(&name) || OURS.contains(&name) || WITHOUT_EFFECT.iter().any(|(known, _)| *known == name)
}

/// Returns the name if an error may show it: it looks like a name, and nothing suggests that it is
/// a part of a password.
fn nameable(name: &str, repeatable: bool) -> Option<&str> {
    let like_a_name = name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    (repeatable && like_a_name).then_some(name)
}

fn unknown_parameter<T>(name: &str, repeatable: bool) -> Result<T, Error> {
    refuse(match nameable(name, repeatable) {
        Some(name) => format!("parameter {name} is unknown or not supported"),
        None => format!("a parameter is unknown (its name is not shown, it may be a part of a password): {ENCODE}"),
    })
}

impl Given {
    pub(super) fn text(&self, name: &str) -> Result<&str, Error> {
        std::str::from_utf8(&self.value)
            .or_else(|_| refuse(format!("{name} is not UTF-8")))
            .and_then(|text| if text.contains('\0') { refuse(format!("{name} holds a zero byte")) } else { Ok(text) })
    }

    pub(super) fn wrong<T>(&self, name: &str, expected: &str) -> Result<T, Error> {
        refuse(match self.text(name) {
            Ok(value) if self.repeatable => format!("{name} is {value:?} where {expected} is expected"),
            _ => format!("{name} is not what is expected: {expected}"),
        })
    }
}
