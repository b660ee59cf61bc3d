//! Read models that own their tables, so that they can be rebuilt.

use std::sync::Arc;
use std::time::Duration;

use postgres::{Client, GenericClient};
use pupsourcing_orchestrator::{BoxError, Event, Projection, Tx};
use serde_json::{Value, json};

use super::commands::give;
use super::eventually;

/// What a test does with each event before it goes into the read model.
type Before = dyn Fn(&mut Tx<'_>, &Event) -> Result<(), BoxError> + Send + Sync;

/// Writes each event it handles into a table of its own, which has the name of the projection.
/// Nothing hides a repetition.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) tables: Vec<&'static str>,
    pub(crate) before: Arc<Before>,
}

impl Model {
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, version: 1, tables: vec![name], before: Arc::new(|_, _| Ok(())) }
    }

    /// The same with another version, which it writes into each row.
    pub(crate) fn version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// The same with a handler that first runs this code.
    pub(crate) fn before(
        self,
        before: impl Fn(&mut Tx<'_>, &Event) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self { before: Arc::new(before), ..self }
    }

    pub(crate) fn create_table(&self, client: &mut Client) {
        let name = self.name;
        client
            .batch_execute(&format!(
                "CREATE TABLE {name} (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, global_position bigint NOT NULL,
                     aggregate_id text NOT NULL, aggregate_version bigint NOT NULL, version int NOT NULL);
                 CREATE INDEX {name}_by_position ON {name} (global_position);
                 COMMENT ON TABLE {name} IS 'a read model'"
            ))
            .unwrap();
    }

    pub(crate) fn boxed(self) -> Box<dyn Projection> {
        Box::new(self)
    }
}

impl Projection for Model {
    fn name(&self) -> &str {
        self.name
    }

    fn tables(&self) -> &[&str] {
        &self.tables
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        (self.before)(tx, event)?;
        let sql = format!(
            "INSERT INTO {} (global_position, aggregate_id, aggregate_version, version) VALUES ($1, $2, $3, $4)",
            self.name
        );
        let version = i32::try_from(self.version)?;
        tx.execute(&sql, &[&event.global_position(), &event.aggregate_id(), &event.aggregate_version(), &version])?;
        Ok(())
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        tx.execute(&format!("DELETE FROM {} WHERE global_position > $1", self.name), &[&to])?;
        Ok(())
    }
}

/// How many rows the read model has, and how many of them are wrong: missing, repeated, out of
/// order, or not of an event.
pub(crate) fn faults(client: &mut impl GenericClient, model: &str) -> (i64, [i64; 4]) {
    let sql = format!(
        "WITH m AS (SELECT *, lag(aggregate_version) OVER (PARTITION BY aggregate_id ORDER BY seq) AS before FROM {model})
         SELECT (SELECT count(*) FROM m),
                (SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT FROM m WHERE m.global_position = e.global_position)),
                (SELECT count(*) - count(DISTINCT global_position) FROM m),
                (SELECT count(*) FROM m WHERE before >= aggregate_version),
                (SELECT count(*) FROM m WHERE NOT EXISTS (SELECT FROM events e WHERE e.global_position = m.global_position))"
    );
    let row = client.query_one(&sql, &[]).unwrap();
    (row.get(0), [row.get(1), row.get(2), row.get(3), row.get(4)])
}

/// Waits until the read model has every event, and checks that it has nothing else.
#[track_caller]
pub(crate) fn await_exact(client: &mut Client, model: &str) {
    eventually("the read model is complete", Duration::from_secs(30), || {
        (faults(client, model).1[0] == 0).then_some(())
    });
    assert_eq!(faults(client, model).1, [0; 4], "(missing, repeated, out of order, strange) of {model}");
}

/// Begins a rebuild without a limit of the rate, and returns the number of the command.
#[track_caller]
pub(crate) fn begin_rebuild(client: &mut Client, model: &str) -> i64 {
    begin_rebuild_with(client, model, &json!({"rate": null}))
}

/// Begins a rebuild, and waits until it has begun.
#[track_caller]
pub(crate) fn begin_rebuild_with(client: &mut Client, model: &str, arguments: &Value) -> i64 {
    let id = give(client, model, "rebuild", arguments);
    let sql = "SELECT step IN ('loading', 'finishing') OR applied_at IS NOT NULL, error FROM orchestrator_commands WHERE id = $1";
    eventually("the rebuild begins", Duration::from_secs(20), || {
        let row = client.query_one(sql, &[&id]).unwrap();
        row.get::<_, Option<bool>>(0).filter(|begun| *begun)
    });
    id
}

/// The schemas that rebuilds have created.
pub(crate) fn schemas(client: &mut Client) -> Vec<String> {
    let sql = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'orchestrator\\_%' ORDER BY 1";
    client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// A command `rebuild` or `cancel`, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) id: i64,
    pub(crate) command: String,
    /// The version and the build in its arguments.
    pub(crate) version: Option<i32>,
    pub(crate) build: Option<String>,
    pub(crate) by: String,
    pub(crate) reason: Option<String>,
    pub(crate) step: Option<String>,
    pub(crate) outcome: Option<String>,
    pub(crate) error: Option<String>,
}

/// The commands that concern rebuilds of a projection, in their order.
pub(crate) fn given(client: &mut impl GenericClient, projection: &str) -> Vec<Given> {
    let sql = "SELECT id, command, (arguments ->> 'version')::int4, arguments ->> 'build', requested_by, reason, step, outcome, error
               FROM orchestrator_commands WHERE projection = $1 AND command IN ('rebuild', 'cancel') ORDER BY id";
    let rows = client.query(sql, &[&projection]).unwrap();
    let read = |row: &postgres::Row| Given {
        id: row.get(0),
        command: row.get(1),
        version: row.get(2),
        build: row.get(3),
        by: row.get(4),
        reason: row.get(5),
        step: row.get(6),
        outcome: row.get(7),
        error: row.get(8),
    };
    rows.iter().map(read).collect()
}

/// Waits until the live read model has this version.
#[track_caller]
pub(crate) fn await_version(client: &mut Client, projection: &str, version: i32) {
    let sql = "SELECT version FROM orchestrator_projections WHERE name = $1";
    eventually("the version is live", Duration::from_secs(180), || {
        (client.query_one(sql, &[&projection]).unwrap().get::<_, i32>(0) == version).then_some(())
    });
}

/// Reads a read model all the time, and checks each time that all its rows have one version, and
/// that it has as many as before, or more.
pub(crate) struct Reader {
    stop: crossbeam_channel::Sender<()>,
    thread: std::thread::JoinHandle<Vec<i32>>,
}

impl Reader {
    pub(crate) fn start(mut client: Client, model: &'static str) -> Self {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let sql = format!("SELECT count(*), coalesce(min(version), 0), coalesce(max(version), 0) FROM {model}");
        let read = move || {
            let statement = client.prepare(&sql).unwrap();
            let (mut most, mut versions) = (0, Vec::new());
            let tick = crossbeam_channel::tick(Duration::from_millis(2));
            while matches!(stopped.try_recv(), Err(crossbeam_channel::TryRecvError::Empty)) {
                let row = client.query_one(&statement, &[]).unwrap();
                let (rows, lowest, highest): (i64, i32, i32) = (row.get(0), row.get(1), row.get(2));
                assert_eq!(lowest, highest, "a mixture of versions");
                assert!(rows >= most, "{rows} rows after {most}");
                most = rows;
                if highest > 0 && versions.last() != Some(&highest) {
                    versions.push(highest);
                }
                tick.recv().unwrap();
            }
            versions
        };
        Self { stop, thread: std::thread::spawn(read) }
    }

    /// Stops, and returns the versions that it has seen, in their order.
    #[track_caller]
    pub(crate) fn versions(self) -> Vec<i32> {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

/// Appends events all the time.
pub(crate) struct Load {
    stop: crossbeam_channel::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Load {
    pub(crate) fn start(mut client: Client) -> Self {
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let append = move || {
            let tick = crossbeam_channel::tick(Duration::from_millis(50));
            while matches!(stopped.try_recv(), Err(crossbeam_channel::TryRecvError::Empty)) {
                super::ledger::append_plainly(&mut client, 3, 20);
                tick.recv().unwrap();
            }
        };
        Self { stop, thread: std::thread::spawn(append) }
    }

    #[track_caller]
    pub(crate) fn stop(self) {
        drop(self.stop);
        self.thread.join().unwrap();
    }
}
