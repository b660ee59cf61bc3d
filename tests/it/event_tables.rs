//! Which tables of events are acceptable. The migration and the start of a worker refuse any other
//! table, with the reason and what to do.

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Database, Error, EventStore, ExpectedVersion, Names, NewEvent, Orchestrator, StreamId};

use crate::bad_input::{SOON, assert_says, migrate_refused, orchestrator, start_refused};
use crate::support::handlers::prepared;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::workers::{await_running, builder, start_ledger};
use crate::support::{Postgres, database, eventually};

/// The columns of a table of events, as its publisher has them.
const COLUMNS: &str = "
    global_position BIGSERIAL NOT NULL, bounded_context TEXT NOT NULL, aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL,
    aggregate_version BIGINT NOT NULL, event_id UUID NOT NULL, event_type TEXT NOT NULL, event_version INT NOT NULL DEFAULT 1,
    payload BYTEA NOT NULL, trace_id TEXT, correlation_id TEXT, causation_id TEXT, metadata JSONB,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()";

#[test]
fn unsuitable_kinds_of_relations_are_refused() {
    for (relation, parts) in [
        (
            "CREATE TABLE kept (COLUMNS); CREATE VIEW events AS SELECT * FROM kept",
            &["\"events\" is a view", "events_table()"][..],
        ),
        (
            "CREATE TABLE a (COLUMNS); CREATE TABLE b (COLUMNS); CREATE VIEW events AS SELECT * FROM a UNION ALL SELECT * FROM b",
            &["\"events\" is a view", "events_table()"],
        ),
        ("CREATE TABLE kept (COLUMNS); CREATE MATERIALIZED VIEW events AS SELECT * FROM kept", &["is a view"]),
        (
            "CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER elsewhere FOREIGN DATA WRAPPER elsewhere;
             CREATE FOREIGN TABLE events (COLUMNS) SERVER elsewhere",
            &["\"events\" is a foreign table"],
        ),
        (
            "CREATE TABLE events (COLUMNS, UNIQUE (global_position)); CREATE TABLE child () INHERITS (events)",
            &["has the child public.child (INHERITS)", "NO INHERIT"],
        ),
        (
            "CREATE TABLE all_events (COLUMNS, UNIQUE (global_position)) PARTITION BY RANGE (global_position);
             CREATE TABLE events PARTITION OF all_events DEFAULT",
            &["\"events\" is a partition of another table"],
        ),
        (
            "CREATE TABLE events (COLUMNS) PARTITION BY RANGE (global_position);
             CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER elsewhere FOREIGN DATA WRAPPER elsewhere;
             CREATE FOREIGN TABLE far PARTITION OF events DEFAULT SERVER elsewhere",
            &["partition public.far of", "is a foreign table", "DETACH PARTITION public.far"],
        ),
        (
            "CREATE TABLE events (COLUMNS)",
            &["unique", "CREATE UNIQUE INDEX ON \"public\".\"events\" (global_position)"],
        ),
        (
            "CREATE TABLE events (COLUMNS, UNIQUE (global_position, aggregate_id)) PARTITION BY HASH (aggregate_id);
             CREATE TABLE one PARTITION OF events FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
            &["unique", "partitioned by ranges of global_position"],
        ),
        ("CREATE TABLE events (COLUMNS, UNIQUE (global_position) DEFERRABLE)", &["unique"]),
        (
            "CREATE TABLE events (COLUMNS); CREATE UNIQUE INDEX ON events (global_position) WHERE event_type <> ''",
            &["unique"],
        ),
    ] {
        let database = database();
        let sql = relation.replace("COLUMNS", COLUMNS);
        database.client().batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let error = migrate_refused(&database, database.url());
        assert!(matches!(error, Error::Schema { .. }), "{relation}: {error:?}");
        assert_says(&error, parts);
    }
}

#[test]
fn a_table_changed_since_the_migration_is_refused() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let url = database.url();
    let required = [
        "bounded_context",
        "aggregate_type",
        "aggregate_id",
        "aggregate_version",
        "event_id",
        "event_type",
        "event_version",
        "payload",
        "created_at",
    ];
    let may_be_null = required.map(|column| {
        (
            format!("ALTER TABLE events ALTER {column} DROP NOT NULL"),
            format!("ALTER TABLE events ALTER {column} SET NOT NULL"),
            vec![format!("column {column} of events may be NULL"), format!("ALTER COLUMN {column} SET NOT NULL")],
        )
    });
    let folded = ["bounded_context", "aggregate_type", "aggregate_id", "event_type"].map(|column| {
        (
            format!("ALTER TABLE events ALTER {column} TYPE text COLLATE folded"),
            format!("ALTER TABLE events ALTER {column} TYPE text COLLATE \"default\""),
            vec![
                format!("column {column} of events has the nondeterministic collation \"folded\""),
                "COLLATE \"C\"".into(),
            ],
        )
    });
    let folding = "CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    client.batch_execute(folding).unwrap();
    let strings = |parts: &[&str]| parts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let others = [
        (
            "ALTER SEQUENCE events_global_position_seq MINVALUE 0",
            "ALTER SEQUENCE events_global_position_seq MINVALUE 1",
            strings(&["has MINVALUE 0", "ALTER SEQUENCE public.events_global_position_seq MINVALUE 1"]),
        ),
        (
            "ALTER SEQUENCE events_global_position_seq MINVALUE -5",
            "ALTER SEQUENCE events_global_position_seq MINVALUE 1",
            strings(&["has MINVALUE -5", "MINVALUE 1"]),
        ),
        (
            "ALTER SEQUENCE events_global_position_seq CYCLE",
            "ALTER SEQUENCE events_global_position_seq NO CYCLE",
            strings(&["starts again at its end", "NO CYCLE"]),
        ),
        (
            "SELECT setval('events_global_position_seq', 9)",
            "SELECT setval('events_global_position_seq', 10)",
            strings(&["event at position 10", "is at 9", "setval("]),
        ),
        (
            "UPDATE events SET global_position = 9223372036854775807 WHERE global_position = 10",
            "UPDATE events SET global_position = 10 WHERE global_position = 9223372036854775807",
            strings(&["event at position 9223372036854775807", "is at 10"]),
        ),
        (
            "UPDATE events SET global_position = 0 WHERE global_position = 1",
            "UPDATE events SET global_position = 1 WHERE global_position = 0",
            strings(&["event at position 0", "positions begin with 1"]),
        ),
        (
            "UPDATE events SET global_position = -7 WHERE global_position = 1",
            "UPDATE events SET global_position = 1 WHERE global_position = -7",
            strings(&["event at position -7"]),
        ),
        (
            "CREATE TABLE child () INHERITS (events)",
            "DROP TABLE child",
            strings(&["has the child public.child (INHERITS)"]),
        ),
        (
            "ALTER TABLE events DROP CONSTRAINT events_pkey",
            "ALTER TABLE events ADD PRIMARY KEY (global_position)",
            strings(&["unique"]),
        ),
    ]
    .map(|(change, undo, parts)| (change.to_owned(), undo.to_owned(), parts));
    for (change, undo, parts) in may_be_null.into_iter().chain(folded).chain(others) {
        client.batch_execute(&change).unwrap();
        let error = start_refused(&database, url);
        assert!(matches!(error, Error::Schema { .. } | Error::UnsupportedServer { .. }), "{change}: {error:?}");
        assert_says(&error, &parts.iter().map(String::as_str).collect::<Vec<_>>());
        client.batch_execute(&undo).unwrap();
    }
    let worker = start_ledger(&database, "p");
    await_running(&[&worker]);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn an_unvalidated_not_null_constraint_is_refused() {
    let database = database();
    let mut client = prepared(&database);
    let version: i32 = client.query_one("SELECT current_setting('server_version_num')::int", &[]).unwrap().get(0);
    if version < 180_000 {
        // Such constraints do not exist before PostgreSQL 18.
        return;
    }
    client
        .batch_execute(
            "ALTER TABLE events ALTER payload DROP NOT NULL; ALTER TABLE events ADD CONSTRAINT there NOT NULL payload NOT VALID",
        )
        .unwrap();
    assert_says(&start_refused(&database, database.url()), &["column payload of events may be NULL", "VALIDATE"]);
    client.batch_execute("ALTER TABLE events VALIDATE CONSTRAINT there").unwrap();
    let worker = start_ledger(&database, "p");
    await_running(&[&worker]);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn an_unacceptable_table_is_not_processed_until_repaired() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    append_plainly(&mut client, 100, 10);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    // A tailer checks the table with each new connection.
    client.batch_execute("ALTER TABLE events ALTER payload DROP NOT NULL").unwrap();
    let ends = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%newest, contiguous%'";
    assert_eq!(client.query_one(ends, &[]).unwrap().get::<_, i64>(0), 1);
    append_plainly(&mut client, 100, 10);
    let mut sessions = || -> i64 {
        let sql = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
        client.query_one(sql, &[]).unwrap().get(0)
    };
    let before = sessions();
    eventually("it has tried again several times", SOON, || (sessions() >= before + 4).then_some(()));
    assert_eq!(handled(&mut client, "p"), 100, "nothing is handled meanwhile");
    client.batch_execute("ALTER TABLE events ALTER payload SET NOT NULL").unwrap();
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn encodings_not_convertible_to_utf_8_are_refused() {
    let server = Postgres::start().unwrap();
    let mut client = Client::connect(&server.url("postgres"), NoTls).unwrap();
    for (encoding, is_usable) in
        [("SQL_ASCII", false), ("EUC_JP", false), ("WIN1252", false), ("LATIN1", true), ("UTF8", true)]
    {
        let name = encoding.to_lowercase();
        client
            .batch_execute(&format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"))
            .unwrap();
        let url = server.url(&name);
        let migrated = orchestrator(&url).migrate();
        if !is_usable {
            let error = migrated.unwrap_err();
            assert!(matches!(error, Error::UnsupportedServer { .. }), "{error:?}");
            assert_says(&error, &[&format!("encoding {encoding}"), "encoding UTF8"]);
            continue;
        }
        migrated.unwrap();
        let mut client = Client::connect(&url, NoTls).unwrap();
        Ledger::create_table(&mut client);
        let stream = StreamId::new("test", "Thing", "\u{e4}pfel \u{ff}");
        EventStore::default()
            .append(&mut client, &stream, ExpectedVersion::Any, &[NewEvent::new("Happened", [0xff])])
            .unwrap();
        let worker = builder(&url, "set").projection(Ledger::named("p")).build().unwrap().start().unwrap();
        eventually("it is handled", SOON, || is_complete(&mut client, "p").then_some(()));
        worker.shutdown(SOON).unwrap();
    }
}

#[test]
fn tables_created_by_an_unrelated_role_are_refused() {
    const TRAP: &str = "
        CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            EXECUTE 'CREATE TABLE IF NOT EXISTS trapped AS SELECT current_user'; RETURN NEW; END $$;
        CREATE TABLE orchestrator_migrations (number INT PRIMARY KEY, works_from INT, hash_probe BIGINT, applied_at TIMESTAMPTZ DEFAULT now());
        CREATE TRIGGER trap BEFORE INSERT ON orchestrator_migrations FOR EACH ROW EXECUTE FUNCTION trap()";
    let roles = |client: &mut Client| {
        for role in ["mallory", "owner_of_events"] {
            // The role may exist already, because all tests share one server.
            _ = client.batch_execute(&format!("CREATE ROLE {role} LOGIN"));
            client.batch_execute(&format!("GRANT CREATE, USAGE ON SCHEMA public TO {role}")).unwrap();
        }
    };
    for table in ["orchestrator_migrations", "orchestrator_workers", "events", "aggregate_heads"] {
        let database = database();
        let mut client = database.client();
        roles(&mut client);
        let url_of = |role: &str| database.url().replace("postgres@", &format!("{role}@"));
        let trap = match table {
            "orchestrator_migrations" => TRAP.to_owned(),
            "events" => format!("CREATE TABLE events ({COLUMNS}, PRIMARY KEY (global_position))"),
            _ => format!("CREATE TABLE {table} (id UUID PRIMARY KEY)"),
        };
        Client::connect(&url_of("mallory"), NoTls).unwrap().batch_execute(&trap).unwrap();
        let error = migrate_refused(&database, database.url());
        assert_says(&error, &[table, "belongs to role mallory", "migration runs as postgres"]);
        let script = client.batch_execute(&Names::default().schema_sql()).unwrap_err();
        assert!(script.as_db_error().unwrap().message().contains("belongs to role mallory"), "{script:?}");
        assert!(
            client
                .query_opt("SELECT to_regclass('trapped') WHERE to_regclass('trapped') IS NOT NULL", &[])
                .unwrap()
                .is_none()
        );
    }
    // The events may belong to the owner of their schema or of the database.
    let database = database();
    let mut client = database.client();
    roles(&mut client);
    client
        .batch_execute(&format!(
            "CREATE SCHEMA theirs AUTHORIZATION owner_of_events; CREATE TABLE theirs.events ({COLUMNS}, PRIMARY KEY (global_position),
                 UNIQUE (bounded_context, aggregate_type, aggregate_id, aggregate_version));
             ALTER TABLE theirs.events OWNER TO owner_of_events"
        ))
        .unwrap();
    let names = Names::default().events_schema("theirs");
    let ours: Orchestrator = Orchestrator::builder(Database::from_url(database.url()).unwrap(), "set")
        .names(names)
        .projection(Ledger::named("p"))
        .build()
        .unwrap();
    ours.migrate().unwrap();
}

#[test]
fn a_schema_with_only_additions_serves_older_libraries() {
    let database = database();
    let mut client = prepared(&database);
    client
        .batch_execute(
            "ALTER TABLE orchestrator_workers ADD COLUMN something_new INT;
             INSERT INTO orchestrator_migrations (number, works_from, hash_probe)
             SELECT 99, max(works_from), max(hash_probe) FROM orchestrator_migrations",
        )
        .unwrap();
    let worker = start_ledger(&database, "p");
    append_plainly(&mut client, 20, 2);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    worker.shutdown(SOON).unwrap();
}
