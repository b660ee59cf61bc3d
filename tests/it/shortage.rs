//! Workers that can get only some of their connections: they hold no partition.

use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{Builder, Handle, Projection, WorkerState};

use crate::probes::{assert_alive, await_unready, probed};
use crate::support::cluster::{assert_keys_are_covered, backends_of, generation, state_of, terminate};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(15);

/// A database with a ledger, and a role for this test alone, whose connections can be limited.
struct Limited {
    database: TestDatabase,
    client: Client,
    role: String,
}

impl Limited {
    fn new() -> Self {
        let database = database();
        let mut client = database.client();
        Ledger::create_table(&mut client);
        // Roles belong to the whole server.
        let role = format!("limited_{}", database.name().split('_').nth(1).unwrap());
        Self { database, client, role }
    }

    fn migrate(&mut self) {
        builder(self.database.url(), "set").projection(Ledger::named("p")).build().unwrap().migrate().unwrap();
        let role = &self.role;
        let grants = format!(
            "CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
        );
        self.client.batch_execute(&grants).unwrap();
    }

    fn builder(&self) -> Builder {
        let url = self.database.url().replace("postgres@", &format!("{}@", self.role));
        builder(&url, "set").database_wait(Duration::from_secs(1))
    }

    fn start(&self) -> Handle {
        start(self.builder(), vec![Box::new(Ledger::named("p")) as Box<dyn Projection>])
    }

    fn connections(&mut self) -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
        self.client.query_one(sql, &[&self.role]).unwrap().get(0)
    }

    fn limit(&mut self, connections: i64) {
        self.client.batch_execute(&format!("ALTER ROLE {} CONNECTION LIMIT {connections}", self.role)).unwrap();
    }

    #[track_caller]
    fn await_all_handled(&mut self) {
        eventually("every event is handled", SOON, || is_complete(&mut self.client, "p").then_some(()));
        assert_exactly_once(&mut self.client, "p");
        assert_keys_are_covered(&mut self.client);
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let role = &self.role;
        _ = self.client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    }
}

#[test]
fn newcomer_without_all_its_connections_takes_no_partition() {
    let mut limited = Limited::new();
    limited.migrate();
    let first = limited.start();
    await_running(&[&first]);
    let before = generation(&mut limited.client);
    let used = limited.connections();
    // The newcomer needs its coordinator's, the listener's, the tailer's and two of a runner.
    for missing in 1..=4 {
        limited.limit(used + 5 - missing);
        let orchestrator = limited.builder().projection(Ledger::named("p")).build().unwrap();
        let error = orchestrator.start().unwrap_err().with_causes();
        assert!(error.contains("too many connections for role"), "{missing} missing: {error}");
        append_plainly(&mut limited.client, 100, 10);
        limited.await_all_handled();
        eventually("its connections are gone", SOON, || (limited.connections() <= used).then_some(()));
    }
    assert_eq!(generation(&mut limited.client), before, "the newcomer has not interrupted the others");
    limited.limit(-1);
    let second = limited.start();
    await_running(&[&first, &second]);
    append_plainly(&mut limited.client, 100, 10);
    limited.await_all_handled();
}

#[test]
fn worker_that_loses_its_connections_gives_its_partition_back() {
    let mut limited = Limited::new();
    limited.migrate();
    // The limit concerns the second one alone.
    let first =
        start(builder(limited.database.url(), "set"), vec![Box::new(Ledger::named("p")) as Box<dyn Projection>]);
    let second = limited.start();
    await_running(&[&first, &second]);
    let (worker, (_server, address)) = (second.worker_id(), probed(&second));
    let coordinator = backends_of(&mut limited.client, worker, true);
    let others = backends_of(&mut limited.client, worker, false);
    let others: Vec<i32> = others.into_iter().filter(|pid| !coordinator.contains(pid)).collect();
    assert!(!others.is_empty());
    limited.limit(1);
    terminate(&mut limited.client, &others);
    append_plainly(&mut limited.client, 200, 20);
    eventually("it gives its partition back", SOON, || {
        (state_of(&mut limited.client, worker) == ("stopped".into(), Some("left".into()))).then_some(())
    });
    limited.await_all_handled();
    assert_eq!(second.status().state, WorkerState::Stopped);
    await_unready(&address, "it cannot get its connections since ");
    assert_alive(&address);

    limited.limit(-1);
    await_running(&[&first, &second]);
    append_plainly(&mut limited.client, 200, 20);
    limited.await_all_handled();
}
