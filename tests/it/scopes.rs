//! Which events a projection is given.

use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{EventStore, ExpectedVersion, NewEvent, Scope};
use serde_json::json;

use crate::support::database;
use crate::support::eventually;
use crate::support::handlers::prepared;
use crate::support::ledger::{Ledger, handled, thing};
use crate::support::workers::{builder, start};

const SOON: Duration = Duration::from_secs(30);

fn ledger(name: &'static str, scope: Scope) -> Ledger {
    Ledger { scope, ..Ledger::named(name) }
}

fn positions(client: &mut Client, projection: &str) -> Vec<i64> {
    let sql = "SELECT global_position FROM ledger WHERE projection = $1 ORDER BY seq";
    client.query(sql, &[&projection]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// Tests both sources of events: the database while the worker catches up, and memory later.
#[test]
fn event_types_and_metadata_are_filtered_alike_everywhere() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let append = |client: &mut Client, id: &str| {
        let event = |event_type: &str| NewEvent::new(event_type, "{}");
        let events = [
            event("Placed").metadata(json!({"tenant": "a", "user": "u"})),
            event("Placed").metadata(json!({"tenant": "b"})),
            event("Paid").metadata(json!({"tenant": "a"})),
            event("Paid").metadata(json!(["tenant", "a"])),
            event("Sent"),
            event("Placed").metadata(json!({"tenant": "a", "user": 1})),
        ];
        store.append(client, &thing(id), ExpectedVersion::Any, &events).unwrap();
        store.hint(client);
    };
    append(&mut client, "before");
    let (placed, tenant, both) = (
        Scope::all().event_types(["Placed", "Never"]),
        Scope::all().metadata("tenant", "a"),
        Scope::all().event_types(["Placed"]).metadata("tenant", "a").metadata("user", "u"),
    );
    let builder = builder(database.url(), "set")
        .projection(ledger("placed", placed))
        .projection(ledger("tenant", tenant))
        .projection(ledger("both", both))
        .projection(ledger("none", Scope::all().event_types([""; 0])));
    let worker = start(builder, vec![]);
    let expect = |client: &mut Client, placed: &[i64], tenant: &[i64], both: &[i64]| {
        eventually("all events are seen", SOON, || {
            let newest: i64 = client.query_one("SELECT max(global_position) FROM events", &[]).unwrap().get(0);
            worker.status().projections.values().all(|p| p.position == Some(newest)).then_some(())
        });
        assert_eq!(positions(client, "placed"), placed);
        assert_eq!(positions(client, "tenant"), tenant);
        assert_eq!(positions(client, "both"), both);
        assert_eq!(handled(client, "none"), 0);
    };
    expect(&mut client, &[1, 2, 6], &[1, 3, 6], &[1]);
    append(&mut client, "after");
    expect(&mut client, &[1, 2, 6, 7, 8, 12], &[1, 3, 6, 7, 9, 12], &[1, 7]);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_projection_of_rare_events_moves_its_checkpoint() {
    const EVENTS: i64 = 100_000;
    let database = database();
    let mut client = prepared(&database);
    let fill = |client: &mut Client, from: i64| {
        client
            .execute(
                "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
                 SELECT 'test', 'Thing', 'thing-' || i % 100, i, gen_random_uuid(),
                        CASE i WHEN $1::bigint + $2::bigint / 2 THEN 'Rare' ELSE 'Common' END, 'x' FROM generate_series($1::bigint + 1, $1::bigint + $2::bigint) AS i ORDER BY i",
                &[&from, &EVENTS],
            )
            .unwrap();
    };
    fill(&mut client, 0);
    let checkpoint = |client: &mut Client| -> i64 {
        client.query_one("SELECT min(position) FROM orchestrator_checkpoints", &[]).unwrap().get(0)
    };
    let builder = builder(database.url(), "set").projection(ledger("rare", Scope::all().event_types(["Rare"])));
    let worker = start(builder, vec![]);
    for (round, from) in [(1, 0), (2, EVENTS)] {
        if from > 0 {
            fill(&mut client, from);
        }
        let newest: i64 = client.query_one("SELECT max(global_position) FROM events", &[]).unwrap().get(0);
        eventually("the checkpoint has moved", SOON, || (checkpoint(&mut client) == newest).then_some(()));
        assert_eq!(handled(&mut client, "rare"), round);
    }
    let status = &worker.status().projections["rare"];
    assert_eq!((status.events, status.lag), (2, Some(0)));
    worker.shutdown(SOON).unwrap();
}

/// Numbers and depths that `jsonb` can hold, but values of Rust cannot.
#[test]
fn metadata_of_any_kind_is_filtered_alike_everywhere() {
    let database = database();
    let mut client = prepared(&database);
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let insert = |client: &mut Client, round: i64| {
        for (n, other) in (1..).zip(["1e400", &deep, "\"\\u00e9\"", "-0.10"]) {
            let metadata = format!("{{\"tenant\": \"a\", \"other\": {other}}}");
            client
                .execute(
                    "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, metadata)
                     VALUES ('test', 'Thing', 'a', $1, gen_random_uuid(), 'Happened', '', $2::text::jsonb)",
                    &[&(4 * round + n), &metadata],
                )
                .unwrap();
        }
    };
    insert(&mut client, 0);
    let builder = builder(database.url(), "set").projection(ledger("tenant", Scope::all().metadata("tenant", "a")));
    let worker = start(builder, vec![]);
    for (round, expected) in [(1, vec![1, 2, 3, 4]), (2, (1..=8).collect())] {
        let newest: i64 = client.query_one("SELECT max(global_position) FROM events", &[]).unwrap().get(0);
        eventually("all events are seen", SOON, || {
            (worker.status().projections["tenant"].position == Some(newest)).then_some(())
        });
        assert_eq!(positions(&mut client, "tenant"), expected);
        insert(&mut client, round);
    }
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_filter_by_metadata_needs_a_jsonb_column() {
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute("ALTER TABLE events ALTER COLUMN metadata TYPE json").unwrap();
    let start = |scope| builder(database.url(), "set").projection(ledger("p", scope)).build().unwrap().start();
    let error = start(Scope::all().metadata("tenant", "a")).unwrap_err().to_string();
    assert!(error.contains("metadata") && error.contains("type json") && error.contains("\"p\""), "{error}");
    start(Scope::all()).unwrap().shutdown(SOON).unwrap();
}
