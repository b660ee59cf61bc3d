//! The temporary server that all other tests use.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use postgres::{Client, NoTls};

use crate::support::{Postgres, StopMode, database, eventually};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn each_test_gets_a_database_of_its_own() {
    let (one, other) = (database(), database());
    assert_ne!(one.name(), other.name());
    for database in [one, other] {
        let row = database
            .client()
            .query_one("SELECT current_database(), pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = current_database()", &[])
            .unwrap();
        assert_eq!(row.get::<_, String>(0), database.name());
        assert_eq!(row.get::<_, String>(1), "UTF8");
        assert_eq!(row.get::<_, String>(2), "C");
        assert!(database.url().ends_with(database.name()));
    }
}

#[test]
fn a_restarted_server_keeps_its_data_and_port() {
    let mut server = Postgres::start().unwrap();
    let url = server.create_database("kept").unwrap();
    Client::connect(&url, NoTls).unwrap().batch_execute("CREATE TABLE starts (n int)").unwrap();
    for (n, mode) in [(1, StopMode::Fast), (2, StopMode::Immediate)] {
        let mut client = Client::connect(&url, NoTls).unwrap();
        client.execute("INSERT INTO starts VALUES ($1)", &[&n]).unwrap();
        let pid = server.pid();
        server.stop(mode).unwrap();
        assert!(!is_alive(pid));
        assert!(client.simple_query("SELECT 1").is_err());
        assert!(Client::connect(&url, NoTls).is_err());
        server.start_again().unwrap();
        assert_eq!(url, server.url("kept"));
        assert_ne!(server.pid(), pid);
        let rows: i64 =
            Client::connect(&url, NoTls).unwrap().query_one("SELECT count(*) FROM starts", &[]).unwrap().get(0);
        assert_eq!(rows, i64::from(n));
    }
}

#[test]
fn starts_again_after_its_postmaster_was_killed() {
    let mut server = Postgres::start().unwrap();
    let pid = server.pid();
    signal("KILL", pid);
    server.start_again().unwrap();
    assert_ne!(server.pid(), pid);
    Client::connect(&server.url("postgres"), NoTls).unwrap();
}

#[test]
fn two_servers_at_once_share_nothing_and_leave_nothing() {
    let one = Postgres::start().unwrap();
    let other = Postgres::start().unwrap();
    assert_ne!(one.port(), other.port());
    one.create_database("mine").unwrap();
    other.create_database("mine").unwrap();
    // One server is busy, the other one is frozen.
    let mut client = Client::connect(&one.url("mine"), NoTls).unwrap();
    client.batch_execute("BEGIN; CREATE TABLE t ()").unwrap();
    signal("STOP", other.pid());
    for server in [one, other] {
        let (pid, home) = (server.pid(), home_of(&server));
        assert!(is_alive(pid) && home.exists());
        drop(server);
        assert!(!is_alive(pid), "the postmaster outlived its owner");
        assert!(!home.exists(), "{} is left", home.display());
    }
}

#[test]
fn takes_settings_files_and_hba() {
    let server = Postgres::options()
        .setting("max_connections", "20")
        .setting("cluster_name", r"it's \ here")
        .file("extra.txt", "of use")
        .hba("host all postgres 127.0.0.1/32 trust\nhost all all all reject\n")
        .start()
        .unwrap();
    let mut client = Client::connect(&server.url("postgres"), NoTls).unwrap();
    let row = client
        .query_one(
            "SELECT current_setting('max_connections'), current_setting('cluster_name'), pg_read_file('extra.txt')",
            &[],
        )
        .unwrap();
    assert_eq!(row.get::<_, String>(0), "20");
    assert_eq!(row.get::<_, String>(1), r"it's \ here");
    assert_eq!(row.get::<_, String>(2), "of use");
    let stranger = server.url("postgres").replace("postgres@", "stranger@");
    assert!(Client::connect(&stranger, NoTls).is_err());
}

#[test]
fn a_server_that_demands_passwords_is_started() {
    let server = Postgres::options().hba("host all all all scram-sha-256\n").start().unwrap();
    assert!(server.create_database("any").is_err());
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let error = Postgres::options().setting("no_such_setting", "1").start().unwrap_err().to_string();
    assert!(error.contains("no_such_setting"), "{error}");

    let error = Postgres::options().bin_dir("/nowhere").start().unwrap_err().to_string();
    assert!(error.contains("/nowhere"), "{error}");

    let old = tempfile::tempdir().unwrap();
    // Another process writes the programs: a program that a process of ours still has open for
    // writing cannot be run.
    let script = r#"for p in initdb postgres; do printf '#!/bin/sh\necho "postgres (PostgreSQL) 13.9"\n' >$p; chmod +x $p; done"#;
    let written = Command::new("sh").args(["-c", script]).current_dir(old.path()).status().unwrap();
    assert!(written.success());
    let error = Postgres::options().bin_dir(old.path()).start().unwrap_err().to_string();
    assert!(error.contains("13.9") && error.contains("14 or later"), "{error}");
}

#[test]
fn the_variable_says_where_the_binaries_come_from() {
    let mut client = database().client();
    let bin_dir: String = client.query_one("SELECT setting FROM pg_config WHERE name = 'BINDIR'", &[]).unwrap().get(0);
    for (setting, refusal) in [
        (bin_dir.as_str(), None),
        ("never", None),
        ("/nowhere", Some("PUPSOURCING_POSTGRES is /nowhere: `initdb` and `postgres` are not both there")),
    ] {
        let output = creator().env("PUPSOURCING_POSTGRES", setting).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        match refusal {
            None => assert!(output.status.success() && said.contains("\nserver "), "{setting}: {said}"),
            Some(refusal) => assert!(!output.status.success() && said.contains(refusal), "{setting}: {said}"),
        }
    }
}

#[test]
fn databases_on_a_server_of_the_user_are_removed() {
    let server = Postgres::start().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scenarios::events_become_read_models_step_by_step"])
        .arg("scenarios::sound_projections_pass_the_check")
        .env("PUPSOURCING_POSTGRES", "/nowhere")
        .env("DATABASE_URL", server.url("postgres"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("2 passed"), "{said}");
    let mut client = Client::connect(&server.url("postgres"), NoTls).unwrap();
    let sql = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'";
    assert_eq!(client.query(sql, &[]).unwrap().len(), 0, "databases are left");
}

#[test]
fn a_server_is_gone_when_its_creator_is_killed() {
    let mut creator = creator().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let line = BufReader::new(creator.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("server ").map(str::to_owned))
        .expect("the creator says what it started");
    let mut words = line.splitn(3, ' ');
    let pid: u32 = words.next().unwrap().parse().unwrap();
    let bystander: u32 = words.next().unwrap().parse().unwrap();
    let home = Path::new(words.next().unwrap());
    assert!(is_alive(pid) && home.exists());

    creator.kill().unwrap();
    creator.wait().unwrap();
    eventually("the server ends", SOON, || (!is_alive(pid)).then_some(()));
    eventually("its directory is removed", SOON, || (!home.exists()).then_some(()));
    // Another child of the creator does not keep the server alive, because it has not inherited the
    // pipe.
    assert!(is_alive(bystander));
    signal("KILL", bystander);
}

/// Set for the process that is killed. Without it the ignored test does nothing, so a run of all
/// ignored tests does not wait for it.
const CREATOR: &str = "PRIVATE_POSTGRES_CREATOR";

/// A process that starts a server, and keeps it until its input ends.
fn creator() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "private_postgres::creator_to_kill", "--ignored", "--nocapture"]).env(CREATOR, "1");
    command
}

#[test]
#[ignore = "the process that a_server_is_gone_when_its_creator_is_killed kills"]
fn creator_to_kill() {
    if std::env::var_os(CREATOR).is_none() {
        return;
    }
    let server = Postgres::start().unwrap();
    let mut bystander = Command::new("sleep")
        .arg("60")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let home = home_of(&server);
    println!("\nserver {} {} {}", server.pid(), bystander.id(), home.display());
    // Wait until this process is killed, or until the process that would kill it has ended.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

fn home_of(server: &Postgres) -> PathBuf {
    server.data_dir().parent().unwrap().to_owned()
}

fn is_alive(pid: u32) -> bool {
    Command::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status().unwrap().success()
}

fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}
