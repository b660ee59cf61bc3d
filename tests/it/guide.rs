//! The SQL of the guide's pages, executed as it is printed.

use postgres::{Client, NoTls};

use crate::support::Postgres;
use crate::support::worker_process::command;

/// The pages that have SQL. The recipe for a rebuild is also executed while workers run.
const PAGES: [(&str, &str); 10] = [
    ("capacity", include_str!("../../src/guide/capacity.md")),
    ("event_store", include_str!("../../src/guide/event_store.md")),
    ("failures", include_str!("../../src/guide/failures.md")),
    ("getting_started", include_str!("../../src/guide/getting_started.md")),
    ("operating", include_str!("../../src/guide/operating.md")),
    ("questions", include_str!("../../src/guide/questions.md")),
    ("security", include_str!("../../src/guide/security.md")),
    ("troubleshooting", include_str!("../../src/guide/troubleshooting.md")),
    ("tuning", include_str!("../../src/guide/tuning.md")),
    ("upgrading", include_str!("../../src/guide/upgrading.md")),
];

/// The blocks in this language, also those within a list.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    page.split(opening.as_str()).skip(1).map(|rest| rest.split_once("```").unwrap().0).collect()
}

#[test]
fn the_sql_of_the_guide_is_executed() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("shop").unwrap();
    // The program of `getting_started`.
    assert!(command("basic").arg("migrate").env("DATABASE_URL", &url).status().unwrap().success());
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(include_str!("../../examples/postgres/roles.sql")).unwrap();
    let mut executed = 0;
    for (page, text) in PAGES {
        // A command needs its projection, and the blocks before it may have deleted that.
        let projections = "INSERT INTO orchestrator_replica_sets (name) VALUES ('main-projections') ON CONFLICT DO NOTHING;
                           INSERT INTO orchestrator_projections (name, replica_set)
                           SELECT unnest(ARRAY['orders', 'old_orders', 'orders_placed']), 'main-projections' ON CONFLICT DO NOTHING";
        client.batch_execute(projections).unwrap();
        for block in blocks(text, "sql") {
            client.batch_execute(block).unwrap_or_else(|error| panic!("{page}: {error:?} in:\n{block}"));
            executed += 1;
        }
    }
    assert!(executed > 20, "{executed}");
}
