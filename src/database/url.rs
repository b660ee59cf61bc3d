//! Interprets the parameters of a URL.
//!
//! The `postgres` crate has a parser too, but it refuses sslrootcert and the verifying sslmodes. So
//! this module interprets those itself, and passes each of the other parameters to that crate.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use postgres::Config;
use postgres::config::SslMode;

use super::limits;
use super::parameters::{ENCODE, EXAMPLE, Parameters, WITHOUT_EFFECT, refuse, split};
use super::ssl::{Mode, Roots, Tls};
use super::target::{host_text, is_unix};
use crate::error::Error;

/// What a URL or key=value string means.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) config: Config,
    pub(super) tls: Tls,
}

pub(super) fn parse(text: &str) -> Result<Parsed, Error> {
    understand(split(text)?)
}

fn expected(name: &str) -> &'static str {
    match name {
        "port" => "a number from 1 to 65535, or one per host with commas between",
        "hostaddr" => "an IP address, or one per host with commas between",
        "connect_timeout" | "keepalives_idle" | "keepalives_interval" => "a whole number of seconds",
        "keepalives" => "0 or 1",
        "target_session_attrs" => "any, read-write, read-only or primary",
        "channel_binding" => "disable, prefer or require",
        "load_balance_hosts" => "disable or random",
        "sslnegotiation" => "postgres or direct",
        _ => "a whole number",
    }
}

fn understand(mut given: Parameters) -> Result<Parsed, Error> {
    let tls = understand_tls(&mut given)?;
    let user_timeout = match given.remove("tcp_user_timeout") {
        // The crate's parser expects seconds here, libpq milliseconds.
        Some(value) => match value.text("tcp_user_timeout")?.parse::<i64>() {
            Ok(milliseconds) => Some(u64::try_from(milliseconds).map_or(Duration::ZERO, Duration::from_millis)),
            Err(_) => return value.wrong("tcp_user_timeout", "a whole number of milliseconds"),
        },
        None => None,
    };
    for (name, harmless) in WITHOUT_EFFECT {
        if let Some(value) = given.remove(*name)
            && !harmless.contains(&value.text(name)?)
        {
            return value.wrong(name, &format!("{} (nothing else is supported)", harmless.join(" or ")));
        }
    }
    if let Some(fallback) = given.remove("fallback_application_name") {
        given.entry("application_name".to_owned()).or_insert(fallback);
    }
    // libpq's `primary` asks for a server that is not in recovery; this library asks for a little
    // more than that.
    if let Some(attributes) = given.get_mut("target_session_attrs").filter(|attributes| attributes.value == b"primary")
    {
        attributes.value = b"read-write".to_vec();
    }
    let password = given.remove("password");

    let mut text = String::new();
    for (name, value) in &given {
        let quoted = value.text(name)?.replace('\\', "\\\\").replace('\'', "\\'");
        let pair = format!("{name}='{quoted}' ");
        let zero_port = name == "port" && value.text(name)?.split(',').any(|port| port.parse() == Ok(0_u16));
        if zero_port || pair.parse::<Config>().is_err() {
            return value.wrong(name, expected(name));
        }
        text.push_str(&pair);
    }
    let mut config: Config = text.parse().or_else(|_| refuse("its parameters contradict each other"))?;
    if let Some(password) = password {
        config.password(password.value);
    }
    if let Some(timeout) = user_timeout.filter(|timeout| !timeout.is_zero()) {
        config.tcp_user_timeout(timeout);
    }
    check_hosts(&mut config)?;

    limits::fill(&mut config, |name| match name {
        "tcp_user_timeout" => user_timeout.is_some(),
        name => given.contains_key(name),
    });
    // libpq ignores sslmode on Unix sockets, and servers offer no TLS there.
    let local = config.get_hosts().iter().all(is_unix) && config.get_hostaddrs().is_empty();
    config.ssl_mode(match tls.mode {
        _ if local => SslMode::Disable,
        Mode::Disable => SslMode::Disable,
        Mode::Prefer => SslMode::Prefer,
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
    });
    if tls.direct && matches!(config.get_ssl_mode(), SslMode::Disable | SslMode::Prefer) {
        return refuse("sslnegotiation=direct needs sslmode require, verify-ca or verify-full");
    }
    Ok(Parsed { config, tls })
}

fn check_hosts(config: &mut Config) -> Result<(), Error> {
    if config.get_hosts().is_empty() {
        let addresses: Vec<IpAddr> = config.get_hostaddrs().to_vec();
        if addresses.is_empty() {
            return refuse(format!("it names no host; write {EXAMPLE}, or host=/var/run/postgresql for a Unix socket"));
        }
        // The TLS handshake needs a name, and there is no other name.
        for address in addresses {
            config.host(&address.to_string());
        }
    }
    for (index, host) in config.get_hosts().iter().enumerate() {
        let number = index + 1;
        let name = host_text(host);
        if name.is_empty() {
            return refuse(format!("host number {number} is empty"));
        }
        if name.contains(['@', ' ', '?', '#']) {
            return refuse(format!("host number {number} holds a character that no host name has: {ENCODE}"));
        }
    }
    let hosts = config.get_hosts().len();
    let addresses = config.get_hostaddrs().len();
    if addresses > 0 && addresses != hosts {
        return refuse(format!("there are {hosts} hosts but {addresses} in hostaddr"));
    }
    let ports = config.get_ports().len();
    if ports > 1 && ports != hosts {
        return refuse(format!("there are {hosts} hosts but {ports} ports: give one port, or one per host"));
    }
    Ok(())
}

fn understand_tls(given: &mut Parameters) -> Result<Tls, Error> {
    let path = |given: &mut Parameters, name: &str| match given.remove(name) {
        Some(value) => value.text(name).map(|text| Some(PathBuf::from(text))),
        None => Ok(None),
    };
    let roots = path(given, "sslrootcert")?
        .map(|path| if path.as_os_str() == "system" { Roots::System } else { Roots::File(path) });
    let mode = match given.remove("sslmode") {
        Some(value) => match value.text("sslmode")? {
            "disable" => Mode::Disable,
            "prefer" => Mode::Prefer,
            "require" => Mode::Require,
            "verify-ca" => Mode::VerifyCa,
            "verify-full" => Mode::VerifyFull,
            "allow" => return refuse("sslmode is \"allow\", which is not supported: use prefer or disable"),
            _ => return value.wrong("sslmode", "disable, prefer, require, verify-ca or verify-full"),
        },
        None if roots == Some(Roots::System) => Mode::VerifyFull,
        None => Mode::Prefer,
    };
    // libpq's rule: anyone can get a certificate from some public CA, so the chain alone proves
    // nothing.
    if roots == Some(Roots::System) && mode != Mode::VerifyFull {
        return refuse(
            "sslrootcert=system needs sslmode=verify-full, a weaker sslmode would accept anybody's certificate",
        );
    }
    let identity = match (path(given, "sslcert")?, path(given, "sslkey")?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return refuse("sslcert is given without sslkey"),
        (None, Some(_)) => return refuse("sslkey is given without sslcert"),
    };
    let direct = match given.get("sslnegotiation") {
        Some(value) => value.text("sslnegotiation")? == "direct",
        None => false,
    };
    Ok(Tls { mode, roots, identity, direct })
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests {
    use postgres::config::{Host, TargetSessionAttrs};

    use super::super::target;
    use super::*;

    fn good(text: &str) -> Parsed {
        parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn bad(text: &str) -> String {
        match parse(text) {
            Err(Error::InvalidUrl { problem }) => problem,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let url = "postgresql://us%40er:p%40ss%2Fw%3Ard@db.example:6432/my%20db?application_name=a%26b&connect_timeout=7\
                   &options=-c%20work_mem%3D8MB&sslmode=require&keepalives_count=9&fallback_application_name=never";
        let pairs = "user = us@er password='p@ss/w:rd' host=db.example port=6432 dbname='my db' application_name=a&b \
                     connect_timeout=7 options='-c work_mem=8MB' sslmode=require keepalives_count=9";
        for text in [url, pairs] {
            let parsed = good(text);
            let config = &parsed.config;
            assert_eq!(config.get_user(), Some("us@er"));
            assert_eq!(config.get_password(), Some(&b"p@ss/w:rd"[..]));
            assert_eq!(config.get_hosts(), [Host::Tcp("db.example".to_owned())]);
            assert_eq!(config.get_ports(), [6432]);
            assert_eq!(config.get_dbname(), Some("my db"));
            assert_eq!(config.get_application_name(), Some("a&b"));
            assert_eq!(config.get_options(), Some("-c work_mem=8MB"));
            assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(7)));
            assert_eq!(config.get_keepalives_retries(), Some(9));
            assert_eq!(config.get_ssl_mode(), SslMode::Require);
            assert_eq!(parsed.tls, Tls { mode: Mode::Require, roots: None, identity: None, direct: false });
        }
    }

    #[test]
    fn values_are_quoted_on_their_way() {
        let quoted = good(r"host=h user='it\'s \\ me' password = \'\\\  dbname=''");
        assert_eq!(quoted.config.get_user(), Some(r"it's \ me"));
        assert_eq!(quoted.config.get_password(), Some(&br"'\ "[..]));
        assert_eq!(quoted.config.get_dbname(), None);
        assert_eq!(good(r"host=h password=my\ ").config.get_password(), Some(&b"my "[..]));
        assert_eq!(good("host=h password=my \n").config.get_password(), Some(&b"my"[..]));
        assert_eq!(good("postgres://it's%5C@h").config.get_user(), Some(r"it's\"));
        // Passwords are bytes, not text.
        assert_eq!(good("postgres://u:%FF@h").config.get_password(), Some(&[0xff][..]));
    }

    #[test]
    fn several_hosts() {
        let parsed = good("postgres://u@a:1,b,[::1]:3/d?target_session_attrs=read-write&load_balance_hosts=random");
        let hosts: Vec<String> = parsed.config.get_hosts().iter().map(host_text).collect();
        assert_eq!(hosts, ["a", "b", "::1"]);
        assert_eq!(parsed.config.get_ports(), [1, 5432, 3]);
        assert_eq!(parsed.config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        let primary = good("host=a,b port=7 target_session_attrs=primary").config;
        assert_eq!(primary.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!(primary.get_ports(), [7]);
        // TLS needs a name even if only addresses are given.
        assert_eq!(good("hostaddr=127.0.0.1").config.get_hosts(), [Host::Tcp("127.0.0.1".to_owned())]);
    }

    #[test]
    fn unix_sockets_never_use_tls() {
        for text in [
            "postgres://u@%2Fvar%2Frun%2Fpostgresql/d?sslmode=verify-full&sslrootcert=system",
            "postgres:///d?host=/var/run/postgresql&sslmode=require",
            "host=/var/run/postgresql sslmode=require",
        ] {
            let config = good(text).config;
            assert_eq!(config.get_hosts(), [Host::Unix("/var/run/postgresql".into())], "{text}");
            assert_eq!(config.get_ssl_mode(), SslMode::Disable, "{text}");
        }
    }

    #[test]
    fn limits_are_defaults() {
        let config = good("host=h").config;
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(5)));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(10)));
        assert!(config.get_keepalives());
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(5));
        assert_eq!(config.get_keepalives_interval(), Some(Duration::from_secs(2)));
        assert_eq!(config.get_keepalives_retries(), Some(3));

        let config = good(
            "host=h connect_timeout=0 tcp_user_timeout=2500 keepalives=0 keepalives_idle=7200 keepalives_interval=4 \
             keepalives_retries=5",
        )
        .config;
        assert_eq!(config.get_connect_timeout(), None);
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_millis(2500)));
        assert!(!config.get_keepalives());
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(7200));
        assert_eq!(config.get_keepalives_interval(), Some(Duration::from_secs(4)));
        assert_eq!(config.get_keepalives_retries(), Some(5));
        assert_eq!(good("host=h tcp_user_timeout=0").config.get_tcp_user_timeout(), None);
    }

    #[test]
    fn sslmode_is_read_with_its_certificates() {
        let file = || Some(Roots::File(PathBuf::from("/ca dir/ca.pem")));
        for (query, mode, roots) in [
            ("", Mode::Prefer, None),
            ("?ssl=true", Mode::Require, None),
            ("?sslmode=", Mode::Prefer, None),
            ("?sslmode=disable", Mode::Disable, None),
            ("?sslmode=verify-ca&sslrootcert=%2Fca%20dir%2Fca.pem", Mode::VerifyCa, file()),
            ("?sslmode=verify-full&sslrootcert=/ca%20dir/ca.pem", Mode::VerifyFull, file()),
            ("?sslrootcert=system", Mode::VerifyFull, Some(Roots::System)),
        ] {
            let tls = good(&format!("postgres://h{query}")).tls;
            assert_eq!((tls.mode, tls.roots), (mode, roots), "{query}");
        }
        assert_eq!(good("host=h sslmode=require sslrootcert='/ca dir/ca.pem'").tls.roots, file());
        let direct = good("host=h sslmode=require sslnegotiation=direct sslcert=c sslkey=k").tls;
        assert!(direct.direct);
        assert_eq!(direct.identity, Some(("c".into(), "k".into())));
    }

    #[test]
    fn bad_input_is_refused_by_name() {
        for (text, words) in [
            ("", "it is empty"),
            ("   ", "it is empty"),
            ("nonsense", "neither a URL nor name=value"),
            ("mysql://u:secret@h/d", "scheme is \"mysql\""),
            ("Postgres://u:secret@h/d", "in lower case"),
            ("postgres://", "names no host"),
            ("postgres:///d", "names no host"),
            ("user=u dbname=d", "names no host"),
            ("postgres://a,,b/d", "host number 2 is empty"),
            ("postgres://h:notaport/d", "the port of host number 1 is not a number"),
            ("postgres://a:1,h:0/d", "the port of host number 2"),
            ("postgres://h:65536/d", "the port of host number 1"),
            ("postgres://::1:5432/d", "more than one colon"),
            ("postgres://[::1/d", "IPv6"),
            ("postgres://[::1]x/d", "IPv6"),
            ("host=h port=x", "port is \"x\""),
            ("host=h port=0", "port is \"0\""),
            ("host=a,b,c port=1,2", "3 hosts but 2 ports"),
            ("host=a,b hostaddr=127.0.0.1", "2 hosts but 1 in hostaddr"),
            ("host=a hostaddr=nonsense", "hostaddr is \"nonsense\""),
            ("postgres://h/%zz", "the database holds a %"),
            ("postgres://h/d?sslmode=maybe", "sslmode is \"maybe\" where disable, prefer,"),
            ("postgres://h/d?sslmode=allow", "sslmode is \"allow\""),
            ("postgres://h/d?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
            ("postgres://h/d?sslcert=c", "sslcert is given without sslkey"),
            ("postgres://h/d?sslkey=k", "sslkey is given without sslcert"),
            ("postgres://h/d?sslcrl=c", "parameter sslcrl is unknown or not supported"),
            ("postgres://h/d?gssencmode=require", "gssencmode is \"require\""),
            ("postgres://h/d?sslnegotiation=direct", "sslnegotiation=direct needs sslmode"),
            ("postgres://h/d?connect_timeout=soon", "connect_timeout is \"soon\" where a whole number of seconds"),
            ("postgres://h/d?tcp_user_timeout=1s", "tcp_user_timeout is \"1s\""),
            ("postgres://h/d?target_session_attrs=standby", "target_session_attrs is \"standby\""),
            ("postgres://h/d?colour=red", "parameter colour is unknown"),
            ("postgres://h/d?sslmode", "parameter sslmode has no value"),
            ("host=h colour=red", "parameter colour is unknown"),
            ("host=h sslmode require", "sslmode is not followed by ="),
            ("host=h user='u", "the quoted value of user has no end"),
        ] {
            let problem = bad(text);
            assert!(problem.contains(words), "{text}: {problem}");
            assert!(!problem.contains("secret"), "{text}: {problem}");
        }
    }

    #[test]
    fn no_error_repeats_a_password() {
        for text in [
            "postgres://user:se@cret@host/db",
            "postgres://user:secret/db",
            "postgres://user:secret",
            "postgres://user:secret@host:x/db",
            "postgres://user:secret@host/db?colour=red",
            "postgres://user:secret%@host/db",
            "postgres://user:x/secret@host/db",
            "postgres://user:1/secret@host/db",
            "postgres://user:x@y?secret@host/db",
            "postgres://user:x@y?secret=1@host/db",
            "postgres://user:x@y?port=secret@host/db",
            "postgres://user:x@y#secret",
            "postgres://user:[secret@host/db",
            "postgres://u:p@[secret/db",
            "postgres://h/d?password=secret&sslmode=x",
            "postgres://h/d?password=%00secret",
            "postgres://h/d?password=my&secret",
            "postgres://h/d?password=my&secret=word",
            "host=h password=my secret",
            "host=h password=my secret=word",
            "host= password=my secret",
            "host=h port= password=secret",
            "host=h password='secret",
            "host=h password=secret sslmode=x",
            "mysql:secret@host",
            "redis://user:secret@host",
        ] {
            let shown = match parse(text) {
                Ok(parsed) => format!("{parsed:?} {}", target::describe(&parsed.config)),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!shown.contains("secret") && !shown.contains("cret@"), "{text}: {shown}");
        }
        let shown = format!("{:?}", good("postgres://user:secret@host/db"));
        assert!(!shown.contains("secret") && shown.contains("host"), "{shown}");
    }
}
