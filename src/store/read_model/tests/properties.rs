use std::path::PathBuf;
use std::process::Command;

use postgres::{Client, NoTls};

use super::generator::{WORLD, generate};
use super::snapshot::{differences, snapshot, version};
use super::swap;
use super::{copied, tables, value};
use crate::store::Names;
use crate::store::read_model::{Refusal, create, find, obstacles, remove};
use crate::testing::Postgres;

/// How many seeds there are in one run. `SEED=n` repeats the run that begins with that seed.
const SEEDS: u64 = 40;

/// A server of its own, because roles and tablespaces belong to the whole server.
fn world() -> (Postgres, String, Client) {
    let server = Postgres::start().unwrap();
    let url = server.create_database("world").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(WORLD).unwrap();
    client.batch_execute("SET allow_in_place_tablespaces = on").unwrap();
    client.batch_execute("CREATE TABLESPACE \"Prop space\" LOCATION ''").unwrap();
    client.batch_execute("GRANT CREATE ON TABLESPACE \"Prop space\" TO PUBLIC").unwrap();
    (server, url, client)
}

/// The schema as `pg_dump` sees it, by paragraphs. `None` if there is no `pg_dump` for this server.
fn dump(url: &str, version: i32) -> Option<Vec<String>> {
    let directory = Command::new("pg_config").arg("--bindir").output().ok()?.stdout;
    let beside = PathBuf::from(String::from_utf8(directory).ok()?.trim()).join("pg_dump");
    let program = if beside.exists() { beside } else { PathBuf::from("pg_dump") };
    let said = Command::new(&program).arg("--version").output().ok()?.stdout;
    let said = String::from_utf8(said).ok()?;
    let major: i32 = said.split_whitespace().nth(2)?.split('.').next()?.parse().ok()?;
    if major < version {
        return None;
    }
    let output = Command::new(&program).args(["--schema-only", "--exclude-schema=old*", url]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let paragraph = |text: &str| {
        let mut lines: Vec<&str> =
            text.lines().filter(|line| !line.starts_with("--") && !line.starts_with('\\')).collect();
        // The order of grants means nothing. The comparison of the catalog includes the grantors.
        if lines.iter().any(|line| line.starts_with("GRANT") || line.starts_with("REVOKE")) {
            lines.sort_unstable();
        }
        lines.join("\n")
    };
    let mut paragraphs: Vec<String> = text.split("\n\n").map(paragraph).collect();
    paragraphs.sort_unstable();
    Some(paragraphs)
}

#[test]
fn random_tables_are_the_same_after_a_swap() {
    let first = std::env::var("SEED").map_or_else(|_| fastrand::u64(..u64::MAX / 2), |seed| seed.parse().unwrap());
    println!("SEED={first}");
    let (_server, url, mut client) = world();
    let version = version(&mut client);
    let mut made = Vec::new();
    for number in 0..SEEDS {
        let schema = format!("s{number}");
        let generated = generate(first + number, &schema, version);
        client.batch_execute(&generated.sql).unwrap_or_else(|error| {
            panic!("SEED={}: {}\n{}", first + number, crate::error::describe(&error), generated.sql)
        });
        made.push((schema, generated));
    }
    let before = dump(&url, version);
    if before.is_none() {
        println!("there is no pg_dump for PostgreSQL {version}: only the catalog is compared");
    }
    for (number, (schema, generated)) in made.iter().enumerate() {
        let seed = first + number as u64;
        let fail = |error: &dyn std::fmt::Display| -> ! { panic!("SEED={seed}: {error}\n{}", generated.sql) };
        let catalog = snapshot(&mut client, schema);
        client.batch_execute(&format!("SET search_path = {schema}")).unwrap();
        let names: Vec<&str> = generated.tables.iter().map(String::as_str).collect();
        let tables = find(&mut client, &Names::default(), &names).unwrap_or_else(|error| fail(&error));
        let found = obstacles(&mut client, &tables, &[]).unwrap();
        if let Some(obstacle) = found.iter().find(|obstacle| obstacle.hinders_swap()) {
            fail(obstacle);
        }
        let mut tx = client.transaction().unwrap();
        let copies =
            create(&mut tx, &format!("copies {number}"), &tables, &["prop_last"]).unwrap_or_else(|error| fail(&error));
        tx.commit().unwrap();
        let mut tx = client.transaction().unwrap();
        swap(&mut tx, &copies, &format!("old{number}")).unwrap_or_else(|error| fail(&error));
        tx.commit().unwrap();
        let after = snapshot(&mut client, schema);
        if catalog != after {
            fail(&differences(&catalog, &after));
        }
        let mut tx = client.transaction().unwrap();
        if number % 2 == 0 {
            let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
            remove(&mut tx, &format!("old{number}"), &oids).unwrap();
        }
        tx.commit().unwrap();
        let sizes: i64 = value(&mut client, "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'copies%'");
        assert_eq!(sizes, 0);
    }
    if let Some((before, after)) = before.zip(dump(&url, version)) {
        assert!(before == after, "SEED={first} + the number of the schema:\n{}", differences(&before, &after));
    }
}

/// Changes of a table. The definitions, the catalog and `pg_dump` have to notice each of them.
const DAMAGES: &[&str] = &[
    "ALTER TABLE {t} ALTER b TYPE varchar",
    "ALTER TABLE {t} ALTER b TYPE text COLLATE \"C\"",
    "ALTER TABLE {t} ALTER b SET DEFAULT 'y'",
    "ALTER TABLE {t} ALTER b DROP DEFAULT",
    "ALTER TABLE {t} ALTER b DROP NOT NULL",
    "ALTER TABLE {t} ALTER b SET STORAGE MAIN",
    "ALTER TABLE {t} ALTER b SET COMPRESSION pglz",
    "ALTER TABLE {t} ALTER b SET STATISTICS 7",
    "ALTER TABLE {t} ALTER b SET (n_distinct = 3)",
    "ALTER TABLE {t} ALTER i SET GENERATED BY DEFAULT",
    "ALTER TABLE {t} ALTER i SET INCREMENT 3",
    "ALTER TABLE {t} ALTER i DROP IDENTITY",
    "ALTER TABLE {t} ALTER g DROP EXPRESSION",
    "ALTER TABLE {t} ADD extra int",
    "ALTER TABLE {t} RENAME b TO z",
    "ALTER TABLE {t} DROP CONSTRAINT t_pkey CASCADE",
    "ALTER TABLE {t} RENAME CONSTRAINT t_check TO other",
    "ALTER TABLE {t} ALTER CONSTRAINT t_self DEFERRABLE",
    "ALTER INDEX {s}.t_b RENAME TO other",
    "ALTER INDEX {s}.t_b SET (fillfactor = 44)",
    "ALTER INDEX {s}.t_pkey SET (fillfactor = 44)",
    "ALTER INDEX {s}.t_b SET TABLESPACE \"Prop space\"",
    "ALTER INDEX {s}.t_b ALTER COLUMN 1 SET STATISTICS 44",
    "DROP INDEX {s}.t_b",
    "ALTER TABLE {t} CLUSTER ON t_b",
    "ALTER TABLE {t} REPLICA IDENTITY FULL",
    "ALTER TABLE {t} SET (fillfactor = 33)",
    "ALTER TABLE {t} SET (toast.autovacuum_vacuum_threshold = 33)",
    "ALTER TABLE {t} SET TABLESPACE \"Prop space\"",
    "ALTER TABLE {t} DROP CONSTRAINT t_self; ALTER TABLE {t} SET UNLOGGED",
    "ALTER TABLE {t} OWNER TO \"Prop owner\"",
    "ALTER SEQUENCE {s}.t_n_seq CYCLE",
    "ALTER SEQUENCE {s}.t_n_seq RENAME TO other",
    "ALTER SEQUENCE {s}.t_n_seq OWNED BY {t}.a",
    "COMMENT ON TABLE {t} IS 'x'",
    "COMMENT ON COLUMN {t}.b IS 'x'",
    "COMMENT ON CONSTRAINT t_check ON {t} IS 'x'",
    "COMMENT ON INDEX {s}.t_pkey IS 'x'",
    "COMMENT ON SEQUENCE {s}.t_n_seq IS 'x'",
    "GRANT SELECT ON {t} TO PUBLIC",
    "GRANT SELECT ON {t} TO prop_reader WITH GRANT OPTION",
    "GRANT UPDATE (b) ON {t} TO prop_reader",
    "GRANT USAGE ON SEQUENCE {s}.t_n_seq TO prop_reader",
    "REVOKE INSERT ON {t} FROM CURRENT_USER",
];

#[test]
fn every_damage_to_a_copy_is_noticed() {
    let (_server, url, mut client) = world();
    let version = version(&mut client);
    client
        .batch_execute(
            "CREATE SCHEMA app; CREATE TABLE app.t (
                 a int CONSTRAINT t_pkey PRIMARY KEY, b text NOT NULL DEFAULT 'x', n serial, i int GENERATED ALWAYS AS IDENTITY,
                 g int GENERATED ALWAYS AS (a * 2) STORED, CONSTRAINT t_check CHECK (a > 0),
                 CONSTRAINT t_self FOREIGN KEY (n) REFERENCES app.t);
             CREATE INDEX t_b ON app.t (lower(b)); GRANT SELECT ON app.t TO prop_reader",
        )
        .unwrap();
    let tables = tables(&mut client, &["t"]);
    let copies = copied(&mut client, &tables);
    let before = snapshot(&mut client, "copies");
    let dumped = dump(&url, version);
    for damage in DAMAGES {
        let damage = damage.replace("{t}", "copies.t").replace("{s}", "copies");
        let mut tx = client.transaction().unwrap();
        tx.batch_execute(&damage).unwrap_or_else(|error| panic!("{damage}: {}", crate::error::describe(&error)));
        let mut inner = tx.transaction().unwrap();
        let outcome = swap(&mut inner, &copies, "old");
        assert!(matches!(outcome, Err(Refusal::Different { .. })), "{damage}: {outcome:?}");
        drop(inner);
        let after = snapshot(&mut tx, "copies");
        assert_ne!(before, after, "{damage}");
        if damage.starts_with("COMMENT ON SEQUENCE") {
            tx.commit().unwrap();
            assert!(dumped.is_none() || dumped != dump(&url, version));
            client.batch_execute("COMMENT ON SEQUENCE copies.t_n_seq IS NULL").unwrap();
        }
    }
    assert!(dumped == dump(&url, version));
    let mut tx = client.transaction().unwrap();
    swap(&mut tx, &copies, "old").unwrap();
}
