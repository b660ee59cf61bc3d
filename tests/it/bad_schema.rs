//! Tables that other programs have created or changed. They are used unchanged if possible, and
//! otherwise refused by column and type.

use pupsourcing_orchestrator::{Error, EventStore, ExpectedVersion};

use crate::bad_input::{SOON, assert_says, migrate_refused, orchestrator, start_refused};
use crate::support::ledger::{append_plainly, assert_exactly_once, happened, is_complete, thing};
use crate::support::workers::{await_running, start_ledger};
use crate::support::{database, eventually};

/// The table that pupsourcing publishes, as another program may have created it: with narrower
/// types and more columns.
const FOREIGN_EVENTS: &str = "
    CREATE TABLE events (
        tenant int NOT NULL DEFAULT 7,
        global_position bigserial PRIMARY KEY,
        bounded_context varchar(100) NOT NULL,
        aggregate_type varchar(100) NOT NULL,
        aggregate_id varchar(100) NOT NULL,
        aggregate_version bigint NOT NULL,
        event_id uuid NOT NULL UNIQUE,
        event_type varchar(100) NOT NULL,
        event_version int NOT NULL DEFAULT 1,
        payload bytea NOT NULL,
        trace_id varchar(100),
        correlation_id varchar(100),
        causation_id varchar(100),
        metadata json,
        created_at timestamptz NOT NULL DEFAULT now(),
        archived boolean NOT NULL DEFAULT false,
        UNIQUE (bounded_context, aggregate_type, aggregate_id, aggregate_version)
    );
    ALTER TABLE events DROP COLUMN archived";

#[test]
fn a_compatible_events_table_is_used_unchanged() {
    let database = database();
    let mut client = database.client();
    client.batch_execute(FOREIGN_EVENTS).unwrap();
    let columns = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
                   FROM pg_attribute WHERE attrelid = 'events'::regclass AND attnum > 0 AND NOT attisdropped";
    let before: String = client.query_one(columns, &[]).unwrap().get(0);
    append_plainly(&mut client, 500, 20);

    let worker = start_ledger(&database, "p");
    await_running(&[&worker]);
    append_plainly(&mut client, 500, 20);
    let with_metadata = happened().metadata(serde_json::json!({"n": 1}));
    EventStore::default().append(&mut client, &thing("thing-1"), ExpectedVersion::Exact(50), &[with_metadata]).unwrap();
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    worker.shutdown(SOON).unwrap();
    assert_eq!(client.query_one(columns, &[]).unwrap().get::<_, String>(0), before);
}

#[test]
fn an_incompatible_table_is_refused_and_nothing_is_created() {
    let database = database();
    let mut client = database.client();
    for (change, parts) in [
        (
            "ALTER TABLE events ALTER global_position TYPE int",
            &["column global_position of events has type integer", "bigint is needed"][..],
        ),
        (
            "ALTER TABLE events ALTER payload TYPE jsonb USING NULL",
            &["column payload of events has type jsonb", "bytea is needed"],
        ),
        (
            "ALTER TABLE events ALTER created_at TYPE timestamp",
            &["column created_at of events has type timestamp without time zone", "timestamp with time zone is needed"],
        ),
        ("ALTER TABLE events ALTER event_id TYPE text", &["column event_id of events has type text", "uuid is needed"]),
        ("ALTER TABLE events DROP COLUMN metadata", &["table events has no column metadata", "jsonb or json"]),
        (
            "CREATE TABLE aggregate_heads (bounded_context text, aggregate_type text, aggregate_id text,
                 aggregate_version int, updated_at timestamptz)",
            &["column aggregate_version of aggregate_heads has type integer", "bigint is needed"],
        ),
        ("ALTER SEQUENCE events_global_position_seq CACHE 32", &["events_global_position_seq has CACHE 32", "CACHE 1"]),
        ("ALTER SEQUENCE events_global_position_seq INCREMENT -1 MINVALUE -9", &["counts down"]),
    ] {
        client.batch_execute("DROP TABLE IF EXISTS events, aggregate_heads").unwrap();
        client.batch_execute(FOREIGN_EVENTS).unwrap();
        client.batch_execute(change).unwrap();
        let error = migrate_refused(&database, database.url());
        assert!(matches!(error, Error::Schema { .. } | Error::UnsupportedServer { .. }), "{change}: {error:?}");
        assert_says(&error, parts);
    }
}

#[test]
fn a_schema_changed_after_its_migration_is_refused() {
    let database = database();
    let mut client = database.client();
    let url = database.url();
    assert_says(
        &orchestrator(url).start().unwrap_err(),
        &["there is no table \"public\".\"orchestrator_migrations\"", "migrate()", "schema_sql()"],
    );
    orchestrator(url).migrate().unwrap();
    for (change, undo, parts) in [
        (
            "ALTER SEQUENCE events_global_position_seq CACHE 20",
            "ALTER SEQUENCE events_global_position_seq CACHE 1",
            &["events_global_position_seq has CACHE 20", "ALTER SEQUENCE public.events_global_position_seq CACHE 1"][..],
        ),
        (
            "CREATE SEQUENCE loose CACHE 5; ALTER TABLE events ALTER global_position SET DEFAULT nextval('loose')",
            "ALTER TABLE events ALTER global_position SET DEFAULT nextval('events_global_position_seq'); DROP SEQUENCE loose",
            &["loose has CACHE 5", "ALTER SEQUENCE public.loose CACHE 1"],
        ),
        (
            "UPDATE orchestrator_migrations SET hash_probe = hash_probe + 1",
            "UPDATE orchestrator_migrations SET hash_probe = hash_probe - 1",
            &["hashtextextended()", "other values"],
        ),
        (
            "ALTER TABLE events RENAME event_type TO kind",
            "ALTER TABLE events RENAME kind TO event_type",
            &["table events has no column event_type", "text or character varying"],
        ),
        (
            "ALTER TABLE events ALTER event_version TYPE bigint",
            "ALTER TABLE events ALTER event_version TYPE int",
            &["column event_version of events has type bigint", "integer is needed"],
        ),
        (
            "DELETE FROM orchestrator_migrations WHERE number = 5",
            "INSERT INTO orchestrator_migrations SELECT 5, 5, max(hash_probe) FROM orchestrator_migrations",
            &["it has version 4", "migrate()"],
        ),
        (
            "INSERT INTO orchestrator_migrations SELECT 99, 6, max(hash_probe) FROM orchestrator_migrations",
            "DELETE FROM orchestrator_migrations WHERE number = 99",
            &["it has version 99", "works with libraries for version 6 or later", "upgrade the library"],
        ),
    ] {
        client.batch_execute(change).unwrap();
        let error = start_refused(&database, url);
        assert!(matches!(error, Error::Schema { .. } | Error::UnsupportedServer { .. }), "{change}: {error:?}");
        assert_says(&error, parts);
        if change.contains("99") {
            assert_says(&migrate_refused(&database, url), parts);
        }
        client.batch_execute(undo).unwrap();
    }
    // With everything undone, a worker starts.
    let worker = start_ledger(&database, "p");
    await_running(&[&worker]);
    worker.shutdown(SOON).unwrap();
}
