//! Properties of every URL and every key=value string.

use std::net::{Ipv4Addr, Ipv6Addr};

use postgres::config::Host;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// The content of a connection string.
#[derive(Debug, Clone)]
struct Said {
    user: String,
    password: Vec<u8>,
    places: Vec<(Place, Option<u16>)>,
    database: String,
    application_name: String,
    options: String,
    connect_timeout: u64,
}

#[derive(Debug, Clone)]
enum Place {
    Name(String),
    V6(Ipv6Addr),
    Socket(String),
}

impl Place {
    fn text(&self) -> String {
        match self {
            Self::Name(name) | Self::Socket(name) => name.clone(),
            Self::V6(address) => address.to_string(),
        }
    }

    fn host(&self) -> Host {
        match self {
            Self::Socket(path) => Host::Unix(path.into()),
            _ => Host::Tcp(self.text()),
        }
    }
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        3 => "[a-z0-9][a-zA-Z0-9._-]{0,20}".prop_map(Place::Name),
        1 => "[äß語𝒜]{1,5}".prop_map(Place::Name),
        1 => any::<Ipv4Addr>().prop_map(|address| Place::Name(address.to_string())),
        1 => any::<Ipv6Addr>().prop_map(Place::V6),
        1 => "(/[a-z0-9._-]{1,8}){1,3}".prop_map(Place::Socket),
    ]
}

/// Any text without the character that ends strings in PostgreSQL's protocol, with many characters
/// that are special in connection strings.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[^\0]{1,12}",
        "[ '\"\\\\@:/?#%&=,;+\\[\\]\t\n\u{a0}\u{2003}a0]{1,12}",
        "[\u{1}-\u{7f}]{1,12}",
        "[\u{10000}-\u{10ffff}]{1,4}",
    ]
}

fn said(password: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Said> {
    let places = prop::collection::vec((place(), prop::option::of(1..=u16::MAX)), 1..4);
    (text(), password, places, text(), text(), text(), 1..100_000_u64).prop_map(
        |(user, password, places, database, application_name, options, connect_timeout)| Said {
            user,
            password,
            places,
            database,
            application_name,
            options,
            connect_timeout,
        },
    )
}

/// Encodes all characters, or only those that are not unreserved in RFC 3986.
fn encoded(value: &[u8], all: bool) -> String {
    let keep = |byte: u8| !all && (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    let encode = |&byte: &u8| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") };
    value.iter().map(encode).collect()
}

/// Writes a value in quotes, or with a \ before each character that is special without quotes.
fn quoted(value: &str, quotes: bool) -> String {
    let special = |c: char| if quotes { "'\\".contains(c) } else { c.is_whitespace() || "'\\".contains(c) };
    let text: String =
        value.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain(std::iter::once(c))).collect();
    if quotes { format!("'{text}'") } else { text }
}

impl Said {
    fn url(&self, scheme: &str, all: bool) -> String {
        let places: Vec<String> = self
            .places
            .iter()
            .map(|(place, port)| {
                let host = match place {
                    Place::V6(address) => format!("[{address}]"),
                    place => encoded(place.text().as_bytes(), all),
                };
                host + &port.map_or_else(String::new, |port| format!(":{port}"))
            })
            .collect();
        let encoded = |value: &[u8]| encoded(value, all);
        format!(
            "{scheme}://{}:{}@{}/{}?application_name={}&options={}&connect_timeout={}",
            encoded(self.user.as_bytes()),
            encoded(&self.password),
            places.join(","),
            encoded(self.database.as_bytes()),
            encoded(self.application_name.as_bytes()),
            encoded(self.options.as_bytes()),
            self.connect_timeout
        )
    }

    fn pairs(&self) -> Vec<(&'static str, String)> {
        let (hosts, ports): (Vec<String>, Vec<String>) =
            self.places.iter().map(|(place, port)| (place.text(), port.unwrap_or(5432).to_string())).unzip();
        vec![
            ("user", self.user.clone()),
            ("password", String::from_utf8(self.password.clone()).expect("a password in text")),
            ("host", hosts.join(",")),
            ("port", ports.join(",")),
            ("dbname", self.database.clone()),
            ("application_name", self.application_name.clone()),
            ("options", self.options.clone()),
            ("connect_timeout", self.connect_timeout.to_string()),
        ]
    }

    fn is_what(&self, text: &str) -> Result<(), TestCaseError> {
        let parsed = parse(text).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        let config = &parsed.config;
        prop_assert_eq!(config.get_user(), Some(self.user.as_str()));
        prop_assert_eq!(config.get_password(), Some(self.password.as_slice()));
        let hosts: Vec<Host> = self.places.iter().map(|(place, _)| place.host()).collect();
        prop_assert_eq!(config.get_hosts(), hosts);
        let ports: Vec<u16> = self.places.iter().map(|(_, port)| port.unwrap_or(5432)).collect();
        prop_assert_eq!(config.get_ports(), ports);
        prop_assert_eq!(config.get_dbname(), Some(self.database.as_str()));
        prop_assert_eq!(config.get_application_name(), Some(self.application_name.as_str()));
        prop_assert_eq!(config.get_options(), Some(self.options.as_str()));
        prop_assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(self.connect_timeout)));
        Ok(())
    }
}

/// Pieces of connection strings in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => select(vec!["postgres://", "postgresql://", "://", "@", ":", "/", "?", "&", "=", ",", "[", "]", "'", "\\", " "]),
        2 => select(vec!["%", "%2", "%zz", "%00", "%ff", "%e2%82", "%40", "%41", "0", "5432", "65536", "::1", "127.0.0.1"]),
        2 => select(vec!["user", "password", "host", "hostaddr", "port", "dbname", "sslmode", "sslrootcert", "sslcert", "ssl"]),
        2 => select(vec!["options", "connect_timeout", "tcp_user_timeout", "keepalives_count", "target_session_attrs"]),
        1 => select(vec!["require", "verify-full", "system", "true", "primary", "a", "语", "\u{a0}", "\0", "\n"]),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// A word that occurs in no error and in no other part of a connection string, but could be the
/// name of a parameter.
const WORD: &str = "[jqxz]{6,10}";

/// A password of words with characters between them that should have been encoded, and the words.
fn careless_password() -> impl Strategy<Value = (String, Vec<String>)> {
    let between = "[@:/?#%&=,' \\\\\\[\\]0-9]{1,3}";
    (prop::collection::vec((between, WORD), 0..4), WORD, "[0-9]{0,2}").prop_map(|(rest, first, digits)| {
        let mut words = vec![first.clone()];
        let mut password = digits + &first;
        for (between, word) in rest {
            password += &between;
            password += &word;
            words.push(word);
        }
        (password, words)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in any::<String>(), after in pieces(), rest in any::<String>()) {
        for text in [&text, &after, &format!("postgres://{text}"), &format!("{text}{after}{rest}")] {
            _ = parse(text);
        }
    }

    #[test]
    fn a_url_says_what_it_was_made_from(
        said in said(prop_oneof![prop::collection::vec(1..=u8::MAX, 1..12), text().prop_map(String::into_bytes)]),
        scheme in select(vec!["postgres", "postgresql"]),
        all in any::<bool>(),
    ) {
        said.is_what(&said.url(scheme, all))?;
    }

    #[test]
    fn pairs_say_what_they_were_made_from(
        said in said(text().prop_map(String::into_bytes)),
        order in Just([0, 1, 2, 3, 4, 5, 6, 7]).prop_shuffle(),
        forms in prop::array::uniform8((any::<bool>(), select(vec!["=", " = ", "\t=\n"]), select(vec![" ", "\n", "  "]))),
    ) {
        let pairs = said.pairs();
        let write = |(index, (quotes, equals, after)): (&usize, &(bool, &str, &str))| {
            let (name, value) = &pairs[*index];
            format!("{name}{equals}{}{after}", quoted(value, *quotes))
        };
        said.is_what(&order.iter().zip(&forms).map(write).collect::<String>())?;
    }

    /// The error may be anywhere, and any character of the password may not be encoded or quoted.
    #[test]
    fn no_error_repeats_any_password(
        (password, words) in careless_password(),
        host in select(vec!["host", "host:x", "host:0", "a,b:1,", "[::1", "[::1]x", "%zz", ""]),
        query in select(vec!["", "sslmode=x", "colour=red", "port=x", "connect_timeout=soon", "user", "sslcert=c", "%zz=1"]),
    ) {
        let pairs = query.replace('&', " ");
        for text in [
            format!("postgres://user:{password}@{host}/db?{query}"),
            format!("postgres://user:{}@{host}/db?{query}", encoded(password.as_bytes(), false)),
            format!("postgres://{host}/db?password={password}&{query}"),
            format!("postgres://{host}/db?{query}&password={}", encoded(password.as_bytes(), false)),
            format!("host={host} password={password} {pairs}"),
            format!("{pairs} password='{password}' host={host}"),
            format!("host={host} {pairs} port= password={password}"),
            format!("password={} {pairs}", quoted(&password, true)),
        ] {
            if let Err(error) = parse(&text) {
                let shown = format!("{error} {error:?}");
                prop_assert!(!words.iter().any(|word| shown.contains(word)), "{}: {}", text, shown);
            }
        }
    }

    #[test]
    fn nothing_shown_of_a_good_one_holds_the_password(said in said(WORD.prop_map(String::into_bytes))) {
        let parsed = parse(&said.url("postgres", false)).expect("it is good");
        let shown = format!("{parsed:?} {}", super::super::target::describe(&parsed.config));
        let password = String::from_utf8(said.password.clone()).expect("it is a word");
        // Any other part may contain the same letters.
        let other = format!("{:?}", Said { password: Vec::new(), ..said });
        prop_assert!(!shown.contains(&password) || other.contains(&password), "{}", shown);
    }
}
