//! A primary and its synchronous standby: the standby has everything that the primary has
//! acknowledged.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use postgres::{Client, NoTls};

use super::{Postgres, StopMode};

/// A primary whose commits wait for a standby. Until [`standby_of`] has made one, it can only be
/// read.
pub(crate) fn primary() -> Postgres {
    Postgres::options()
        .setting("wal_level", "replica")
        .setting("synchronous_commit", "on")
        .setting("synchronous_standby_names", "*")
        .start()
        .unwrap()
}

/// A hot standby that streams from the primary. When promoted, it waits for no standby of its own.
pub(crate) fn standby_of(primary: &Postgres) -> Postgres {
    let mut standby = Postgres::start().unwrap();
    standby.stop(StopMode::Immediate).unwrap();
    let data = standby.data_dir().to_owned();
    let owner = fs::metadata(&data).unwrap();
    fs::remove_dir_all(&data).unwrap();

    let mut client = Client::connect(&primary.url("postgres"), NoTls).unwrap();
    let bin_dir: String = client.query_one("SELECT setting FROM pg_config WHERE name = 'BINDIR'", &[]).unwrap().get(0);
    let copied = Command::new(format!("{bin_dir}/pg_basebackup"))
        .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--no-password", "--username=postgres"])
        .arg(format!("--dbname={}", primary.url("postgres")))
        .arg("--pgdata")
        .arg(&data)
        .current_dir(data.parent().unwrap())
        .uid(owner.uid())
        .gid(owner.gid())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let mut conf = OpenOptions::new().append(true).open(data.join("postgresql.auto.conf")).unwrap();
    conf.write_all(b"synchronous_standby_names = ''\n").unwrap();
    standby.start_again().unwrap();
    standby
}
