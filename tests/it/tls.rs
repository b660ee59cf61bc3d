//! Every `sslmode` against a server with a good certificate, with one for another host, with a
//! self-signed one, and without TLS.

#![allow(clippy::unwrap_used, reason = "these are tests, also outside the functions marked so")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use pupsourcing_orchestrator::Database;
use pupsourcing_orchestrator::testing::PostgresOptions;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::bad_input::{SOON, assert_says, orchestrator};
use crate::support::cluster::{backends_of, terminate};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, eventually};

/// Writes the certificates that the table below needs, each `x.crt` with its key `x.key`: `ca`,
/// `other_ca`; issued by `ca`: `right` (for this host), `elsewhere` (for another one), `expired`
/// and `client`; and `itself` and `itself_expired`, self-signed and marked as a CA's, as
/// `openssl req -x509` makes them.
fn write_certificates(dir: &Path) {
    const HERE: &[&str] = &["localhost", "127.0.0.1", "::1"];
    let write = |name: &str, certificate: &rcgen::Certificate, key: &KeyPair| {
        std::fs::write(dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    };
    let params = |name: &str, hosts: &[&str]| {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let expire = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    };
    let authority = |name: &str, hosts: &[&str]| {
        let mut params = params(name, hosts);
        if name.ends_with("expired") {
            expire(&mut params);
        }
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        write(name, &params.self_signed(&key).unwrap(), &key);
        Issuer::new(params, key)
    };
    let ca = authority("ca", &[]);
    authority("other_ca", &[]);
    authority("itself", HERE);
    authority("itself_expired", HERE);

    let issue = |name: &str, mut params: CertificateParams, purpose: ExtendedKeyUsagePurpose| {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        write(name, &params.signed_by(&key, &ca).unwrap(), &key);
    };
    issue("right", params("right", HERE), ExtendedKeyUsagePurpose::ServerAuth);
    issue("elsewhere", params("elsewhere", &["elsewhere.example"]), ExtendedKeyUsagePurpose::ServerAuth);
    issue("client", params("client", &[]), ExtendedKeyUsagePurpose::ClientAuth);
    let mut expired = params("expired", HERE);
    expire(&mut expired);
    issue("expired", expired, ExtendedKeyUsagePurpose::ServerAuth);
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Encrypted,
    Plain,
    /// An error with these words.
    Refused(&'static str),
}
use Outcome::{Encrypted, Plain, Refused};

type Row = (&'static str, Outcome);

const NAME: Outcome = Refused("not valid for name");
const ISSUER: Outcome = Refused("UnknownIssuer");
const EXPIRED: Outcome = Refused("expired");
const NO_TLS: Outcome = Refused("server does not support TLS");

/// The server's certificate (`None`: it has no TLS), and for each query string the outcome of a
/// connection. `DIR` is the folder of the certificates.
const TABLE: &[(Option<&str>, &[Row])] = &[
    (
        Some("right"),
        &[
            ("", Encrypted),
            ("?sslmode=disable", Plain),
            ("?sslmode=prefer", Encrypted),
            ("?sslmode=prefer&sslrootcert=DIR/other_ca.crt", ISSUER),
            ("?sslmode=require", Encrypted),
            ("?sslmode=require&sslrootcert=DIR/ca.crt", Encrypted),
            ("?sslmode=require&sslrootcert=DIR/other_ca.crt", ISSUER),
            ("?sslmode=require&channel_binding=require", Refused("authentication")),
            ("?sslmode=verify-ca&sslrootcert=DIR/ca.crt", Encrypted),
            ("?sslmode=verify-ca&sslrootcert=DIR/other_ca.crt", ISSUER),
            ("?sslmode=verify-full&sslrootcert=DIR/ca.crt", Encrypted),
            ("?sslmode=verify-full&sslrootcert=DIR/other_ca.crt", ISSUER),
            ("?sslmode=verify-full&sslrootcert=DIR/ca.crt&hostaddr=127.0.0.1&host=elsewhere.example", NAME),
            // No system trusts the certificate of a test.
            ("?sslmode=verify-full&sslrootcert=system", Refused("")),
        ],
    ),
    (
        Some("elsewhere"),
        &[
            ("?sslmode=prefer", Encrypted),
            ("?sslmode=require", Encrypted),
            ("?sslmode=require&sslrootcert=DIR/ca.crt", Encrypted),
            ("?sslmode=verify-ca&sslrootcert=DIR/ca.crt", Encrypted),
            ("?sslmode=verify-ca&sslrootcert=DIR/other_ca.crt", ISSUER),
            ("?sslmode=verify-full&sslrootcert=DIR/ca.crt", NAME),
            ("?sslmode=verify-full&sslrootcert=DIR/ca.crt&hostaddr=127.0.0.1&host=elsewhere.example", Encrypted),
        ],
    ),
    (
        Some("expired"),
        &[
            ("?sslmode=require", Encrypted),
            ("?sslmode=verify-ca&sslrootcert=DIR/ca.crt", EXPIRED),
            ("?sslmode=verify-full&sslrootcert=DIR/ca.crt", EXPIRED),
        ],
    ),
    (
        Some("itself"),
        &[
            ("?sslmode=require", Encrypted),
            ("?sslmode=verify-ca&sslrootcert=DIR/itself.crt", Encrypted),
            ("?sslmode=verify-ca&sslrootcert=DIR/ca.crt", Refused("invalid peer certificate")),
            ("?sslmode=verify-full&sslrootcert=DIR/itself.crt", Encrypted),
            ("?sslmode=verify-full&sslrootcert=DIR/itself.crt&hostaddr=127.0.0.1&host=elsewhere.example", NAME),
        ],
    ),
    (
        Some("itself_expired"),
        &[
            ("?sslmode=require", Encrypted),
            ("?sslmode=verify-ca&sslrootcert=DIR/itself_expired.crt", EXPIRED),
            ("?sslmode=verify-full&sslrootcert=DIR/itself_expired.crt", EXPIRED),
        ],
    ),
    (
        None,
        &[
            ("?sslmode=disable", Plain),
            ("?sslmode=prefer", Plain),
            ("?sslmode=require", NO_TLS),
            ("?sslmode=verify-ca&sslrootcert=DIR/ca.crt", NO_TLS),
            ("?sslmode=verify-full&sslrootcert=DIR/ca.crt", NO_TLS),
        ],
    ),
];

/// Whether the connection is encrypted, or the error.
fn try_connect(url: &str) -> Result<bool, String> {
    let mut client =
        Database::from_url(url).and_then(|database| database.connect()).map_err(|error| error.with_causes())?;
    let row = client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).unwrap();
    Ok(row.get(0))
}

/// Gives the server this certificate, and waits until the server uses it.
fn present(server: &Postgres, certificate: Option<&str>) {
    let database = Database::from_url(&format!("{}?sslmode=disable", server.url("postgres"))).unwrap();
    let file = |extension: &str| format!("{}.{extension}", certificate.unwrap_or("right"));
    let mut client = database.connect().unwrap();
    for (name, value) in [
        ("ssl", if certificate.is_some() { "on" } else { "off" }.to_owned()),
        ("ssl_cert_file", file("crt")),
        ("ssl_key_file", file("key")),
        ("ssl_ca_file", "ca.crt".to_owned()),
    ] {
        client.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).unwrap();
    }
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // A session begun after the reload shows the new settings, and its server process has the new
    // certificate.
    loop {
        let row = database
            .connect()
            .unwrap()
            .query_one("SELECT current_setting('ssl'), current_setting('ssl_cert_file')", &[]);
        let (on, now): (String, String) = row.map(|row| (row.get(0), row.get(1))).unwrap();
        if (on == "on") == certificate.is_some() && now == file("crt") {
            return;
        }
        assert!(Instant::now() < deadline, "the server did not take {certificate:?}");
        std::thread::yield_now();
    }
}

fn files_of(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let file =
        |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    std::fs::read_dir(dir).unwrap().map(|entry| file(entry.unwrap())).collect()
}

fn with_files_of(dir: &Path) -> PostgresOptions {
    files_of(dir).into_iter().fold(Postgres::options(), |options, (name, content)| options.file(name, content))
}

#[test]
fn each_sslmode_is_tried_against_each_server() {
    let dir = tempfile::tempdir().unwrap();
    write_certificates(dir.path());
    let server = with_files_of(dir.path()).start().unwrap();

    let mut wrong = Vec::new();
    for (certificate, rows) in TABLE {
        present(&server, *certificate);
        for (query, expected) in *rows {
            let query = query.replace("DIR", dir.path().to_str().unwrap());
            for host in ["127.0.0.1", "localhost"] {
                let url = format!("postgres://postgres@{host}:{}/postgres{query}", server.port());
                let outcome = try_connect(&url);
                let as_expected = match (expected, &outcome) {
                    (Encrypted, Ok(encrypted)) => *encrypted,
                    (Plain, Ok(encrypted)) => !encrypted,
                    (Refused(words), Err(error)) => error.contains(words),
                    _ => false,
                };
                if !as_expected {
                    wrong.push(format!("{certificate:?} {host} {query}: {expected:?} expected, {outcome:?} found"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    present(&server, Some("right"));
    let path = dir.path().display();
    let url = format!("{}?sslmode=require&sslcert={path}/client.crt&sslkey={path}/client.key", server.url("postgres"));
    let set_mode =
        |mode| std::fs::set_permissions(dir.path().join("client.key"), Permissions::from_mode(mode)).unwrap();
    set_mode(0o644);
    assert_says(&Database::from_url(&url).unwrap_err(), &["client.key has mode 0644", "0600"]);
    set_mode(0o600);
    let mut client = Database::from_url(&url).unwrap().connect().unwrap();
    let row = client.query_one("SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).unwrap();
    assert!(row.get::<_, String>(0).contains("client"), "the server did not see the client's certificate");

    present(&server, Some("itself"));
    let begun = Instant::now();
    let url = format!("{}?sslmode=verify-ca&sslrootcert={path}/ca.crt", server.url("postgres"));
    assert_says(&orchestrator(&url).start().unwrap_err(), &["TLS"]);
    assert!(begun.elapsed() < SOON, "a certificate that is not trusted is not waited for");
}

/// Tests what the documentation of `Database::from_url` says about `prefer`, and what it recommends
/// instead.
#[test]
fn a_request_for_a_clear_text_password_can_be_refused() {
    let hba = "host all postgres all trust\nhost all all all password\n";
    let server = Postgres::options().hba(hba).start().unwrap();
    let mut admin = postgres::Client::connect(&server.url("postgres"), postgres::NoTls).unwrap();
    admin.batch_execute("CREATE ROLE app LOGIN PASSWORD 'hidden'").unwrap();
    let outcome =
        |query: &str| try_connect(&format!("postgres://app:hidden@127.0.0.1:{}/postgres?{query}", server.port()));
    assert_eq!(outcome("sslmode=prefer"), Ok(false), "the client answers");
    for query in ["sslmode=prefer&channel_binding=require", "sslmode=require", "sslmode=verify-full&sslrootcert=system"]
    {
        let error = outcome(query).unwrap_err();
        assert!(!error.contains("hidden"), "{query}: {error}");
    }
}

#[test]
fn certificates_are_replaced_while_a_worker_runs() {
    // Two authorities, and the certificates that each has issued. The client has the files of one
    // of them at a time.
    let [old, new, client] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    for dir in [&old, &new] {
        write_certificates(dir.path());
    }
    let give = |dir: &Path| {
        for name in ["ca.crt", "client.crt", "client.key"] {
            std::fs::copy(dir.join(name), client.path().join(name)).unwrap();
        }
        let key = Permissions::from_mode(0o600);
        std::fs::set_permissions(client.path().join("client.key"), key).unwrap();
    };
    give(old.path());
    let hba = "hostssl all all all trust clientcert=verify-ca\nhostnossl all all all trust\n";
    let server = with_files_of(old.path()).hba(hba).start().unwrap();
    let plain = server.create_database("rotated").unwrap();
    present(&server, Some("right"));
    let mut admin = postgres::Client::connect(&plain, postgres::NoTls).unwrap();
    let at = client.path().display();
    let url =
        format!("{plain}?sslmode=verify-full&sslrootcert={at}/ca.crt&sslcert={at}/client.crt&sslkey={at}/client.key");
    let database = Database::from_url(&url).unwrap();
    Ledger::create_table(&mut admin);
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    append_plainly(&mut admin, 100, 10);
    eventually("all events are handled", SOON, || is_complete(&mut admin, "p").then_some(()));

    for (name, content) in files_of(new.path()) {
        std::fs::write(server.data_dir().join(name), content).unwrap();
    }
    admin.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually("the server has the new certificates", SOON, || {
        database.connect().err().filter(|error| error.with_causes().contains("certificate"))
    });
    std::fs::remove_file(client.path().join("client.crt")).unwrap();
    let lost = backends_of(&mut admin, worker.worker_id(), false);
    terminate(&mut admin, &lost);
    let error = database.connect().err().unwrap().with_causes();
    assert!(error.contains(&format!("sslcert {at}/client.crt cannot be read")), "{error}");
    append_plainly(&mut admin, 100, 10);
    give(new.path());
    eventually("all events are handled", SOON, || is_complete(&mut admin, "p").then_some(()));
    assert_exactly_once(&mut admin, "p");
    worker.shutdown(SOON).unwrap();
}
