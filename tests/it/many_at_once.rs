//! Many orchestrators in one process and in one database, and what remains of those that ended.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use postgres::NoTls;
use pupsourcing_orchestrator::{Error, Names};

use crate::support::cluster::{assert_keys_are_covered, generation};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder, start, start_ledger};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn ten_migrations_at_once_make_one_schema() {
    let database = database();
    let together = Barrier::new(10);
    for round in 1..=2 {
        let outcomes: Vec<Result<(), Error>> = thread::scope(|scope| {
            let migrating: Vec<_> = (0..10)
                .map(|_| {
                    scope.spawn(|| {
                        let builder = builder(database.url(), "set").projection(Ledger::named("p"));
                        let orchestrator = builder.build().unwrap();
                        together.wait();
                        orchestrator.migrate()
                    })
                })
                .collect();
            migrating.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(outcomes.iter().all(Result::is_ok), "round {round}: {outcomes:?}");
    }
    let mut client = database.client();
    let applied = "SELECT count(*), max(number)::bigint, count(DISTINCT hash_probe) FROM orchestrator_migrations";
    let row = client.query_one(applied, &[]).unwrap();
    let [count, newest, probes] = [0, 1, 2].map(|column| row.get::<_, i64>(column));
    assert_eq!((count, probes), (newest, 1), "each once");
    let worker = start_ledger(&database, "p");
    await_running(&[&worker]);
    append_plainly(&mut client, 100, 10);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
}

#[test]
fn replica_sets_with_one_name_in_two_schemas_are_separate() {
    let database = database();
    let in_schema = |schema: &str| {
        // The search path leads to the handler's table. The library's tables are found by their
        // names.
        let url = format!("{}?options=-csearch_path%3D{schema}", database.url());
        let mut client = postgres::Client::connect(&url, NoTls).unwrap();
        client.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {schema}")).unwrap();
        Ledger::create_table(&mut client);
        let builder = builder(&url, "set").names(Names::default().schema(schema));
        (start(builder, vec![Box::new(Ledger::named("p"))]), client)
    };
    let (one, mut in_one) = in_schema("one");
    let (other, mut in_other) = in_schema("other");
    await_running(&[&one]);
    await_running(&[&other]);
    append_plainly(&mut in_one, 300, 30);
    append_plainly(&mut in_other, 500, 20);
    let (joiner, _) = in_schema("other");
    await_running(&[&other, &joiner]);
    for client in [&mut in_one, &mut in_other] {
        eventually("all events are handled", SOON, || is_complete(client, "p").then_some(()));
        assert_exactly_once(client, "p");
        assert_keys_are_covered(client);
    }
    assert_eq!((generation(&mut in_one), generation(&mut in_other)), (1, 2));
    assert_eq!(await_running(&[&one]), 1);
}

#[test]
fn two_event_tables_in_one_schema_have_separate_safe_heads() {
    let database = database();
    let mut all = database.client();
    let mut start_over = |schema: &str, projection: &'static str| {
        let names = Names::default().events_schema(schema);
        all.batch_execute(&names.schema_sql()).unwrap();
        let url = format!("{}?options=-csearch_path%3D{schema}", database.url());
        let mut client = postgres::Client::connect(&url, NoTls).unwrap();
        Ledger::create_table(&mut client);
        (start(builder(&url, schema).names(names), vec![Box::new(Ledger::named(projection))]), client)
    };
    let (far, mut of_far) = start_over("far", "p");
    append_plainly(&mut of_far, 300, 30);
    eventually("the safe head is reported", SOON, || {
        of_far.query_opt("SELECT FROM public.orchestrator_workers WHERE safe_head = 300", &[]).unwrap()
    });
    let (near, mut of_near) = start_over("near", "q");
    await_running(&[&near]);
    for _ in 1..=3 {
        append_plainly(&mut of_near, 20, 5);
        eventually("all events are handled", SOON, || is_complete(&mut of_near, "q").then_some(()));
    }
    assert_exactly_once(&mut of_near, "q");
    far.shutdown(SOON).unwrap();
}

#[test]
fn replica_sets_in_one_process_run_their_own_projections() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let worker = |set: &str, name| start(builder(database.url(), set), vec![Box::new(Ledger::named(name))]);
    let (a1, b1, a2) = (worker("a", "p"), worker("b", "q"), worker("a", "p"));
    append_plainly(&mut client, 500, 50);
    await_running(&[&a1, &a2]);
    assert_eq!(await_running(&[&b1]), 1, "the other set does not affect it");
    for projection in ["p", "q"] {
        eventually("all events are handled", SOON, || is_complete(&mut client, projection).then_some(()));
        assert_exactly_once(&mut client, projection);
    }
    assert_keys_are_covered(&mut client);
}

#[test]
fn old_generations_and_stopped_workers_are_pruned() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let orchestrator = builder(database.url(), "set").projection(Ledger::named("p")).build().unwrap();
    orchestrator.migrate().unwrap();
    client
        .batch_execute(
            "INSERT INTO orchestrator_replica_sets (name) VALUES ('set'), ('another');
             INSERT INTO orchestrator_generations (replica_set, number, state, total_partitions, reason)
             SELECT s, n, 'superseded', 1, 'test' FROM generate_series(1, 250) AS n, unnest('{set,another}'::text[]) AS s;
             INSERT INTO orchestrator_workers (id, replica_set, state, host, pid, version, projections, stopped_at, stop_reason)
             SELECT gen_random_uuid(), s, 'stopped', 'h', pid, '0', '{}', now() - pid * interval '10 minutes', 'left'
             FROM unnest('{3,7,2000}'::int[]) AS pid, unnest('{set,another}'::text[]) AS s;",
        )
        .unwrap();
    let worker = orchestrator.start().unwrap();
    assert_eq!(await_running(&[&worker]), 251);
    let mut left = |set: &str| {
        let row = client
            .query_one(
                "SELECT (SELECT count(*) FROM orchestrator_generations WHERE replica_set = $1),
                        (SELECT min(number) FROM orchestrator_generations WHERE replica_set = $1),
                        (SELECT count(*) FROM orchestrator_workers WHERE replica_set = $1 AND state = 'stopped')",
                &[&set],
            )
            .unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2))
    };
    assert_eq!(left("set"), (200, 52, 1), "generations, the first of them, stopped workers");
    assert_eq!(left("another"), (250, 1, 3), "those of the other set are not pruned");
}

#[test]
fn only_one_of_several_starting_processes_migrates() {
    let database = database();
    let mut workers: Vec<_> = (0..5).map(|_| WorkerProcess::start(database.url(), &[])).collect();
    let migrated = |worker: &mut WorkerProcess| {
        worker.await_line(&["registered: "]);
        worker.log().iter().filter(|line| line.contains("migrated: ")).count()
    };
    assert_eq!(workers.iter_mut().map(migrated).sum::<usize>(), 1);
}
