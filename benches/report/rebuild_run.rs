//! What the sections about rebuilds share: a projection that owns its tables, and its rebuilds.

use std::time::{Duration, Instant};

use postgres::Client;
use pupsourcing_orchestrator::operator::{Command, Operator, Rebuild};
use pupsourcing_orchestrator::{Handle, Names};

use crate::lab::builder;
use crate::projections::{Handler, Measured};
use crate::support::pause;
use crate::support::server::connect;

/// How long the bench waits for a step of a rebuild.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(2);

/// A projection that is rebuilt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rebuilt {
    pub(crate) handler: Handler,
    /// It handles the events above this position, up to the other one.
    pub(crate) start_at: i64,
    pub(crate) head: i64,
    pub(crate) batch_size: usize,
}

impl Rebuilt {
    /// The name of the projection and of its replica set. A database has only one of them, because
    /// no two projections may own the same tables.
    pub(crate) fn name(self) -> String {
        format!("rebuilt-{}", self.handler.name())
    }

    /// Rebuilds the read model at an unlimited rate, with a worker in this process. Returns the
    /// events per second: from the moment at which the rebuild has begun until its checkpoint is at
    /// the last event.
    pub(crate) fn run(self, url: &str) -> f64 {
        let name = self.name();
        let projection = Measured::new(&*name, self.start_at, self.handler).owning_tables();
        let built = builder(url, &name).batch_projection(projection).batch_size(self.batch_size).build();
        let handle = built.unwrap().start().unwrap();
        let mut client = connect(url);
        await_position(&mut client, &name, self.head);
        let rebuild = begin(&mut client, &name, Rebuild::default().unlimited());
        let begun = Instant::now();
        // The switch ends the checkpoint of this name.
        let position = "SELECT min(position) FROM orchestrator_checkpoints WHERE projection = $1 || '@rebuild'";
        let position = client.prepare(position).unwrap();
        wait_until(|| client.query_one(&position, &[&name]).unwrap().get::<_, Option<i64>>(0) >= Some(self.head));
        let took = begun.elapsed();
        await_done(&mut client, rebuild);
        leave(handle);
        (self.head - self.start_at) as f64 / took.as_secs_f64()
    }
}

/// Begins a rebuild, and returns the number of its command.
pub(crate) fn begin(client: &mut Client, projection: &str, rebuild: Rebuild) -> i64 {
    let id = submit(client, Command::rebuild(projection, rebuild));
    let sql = "SELECT step = 'loading' OR applied_at IS NOT NULL FROM orchestrator_commands WHERE id = $1";
    wait_until(|| client.query_one(sql, &[&id]).unwrap().get::<_, Option<bool>>(0) == Some(true));
    id
}

pub(crate) fn cancel(client: &mut Client, projection: &str) {
    let id = submit(client, Command::cancel_rebuild(projection));
    await_done(client, id);
}

fn submit(client: &mut Client, command: Command) -> i64 {
    let operator = Operator::new(Names::default()).unwrap();
    operator.submit(client, &command.reason("to measure it").by("bench")).unwrap()
}

/// Waits until a command is done.
pub(crate) fn await_done(client: &mut Client, command: i64) {
    let mut outcome = || {
        let row =
            client.query_one("SELECT outcome, error FROM orchestrator_commands WHERE id = $1", &[&command]).unwrap();
        (row.get::<_, Option<String>>(0), row.get::<_, Option<String>>(1))
    };
    wait_until(|| outcome().0.is_some());
    let (outcome, error) = outcome();
    assert_eq!(outcome.as_deref(), Some("done"), "{error:?}");
}

/// Waits until a projection has reached a position.
pub(crate) fn await_position(client: &mut Client, projection: &str, position: i64) {
    let sql = "SELECT min(position) FROM orchestrator_checkpoints WHERE projection = $1";
    wait_until(|| client.query_one(sql, &[&projection]).unwrap().get::<_, Option<i64>>(0) >= Some(position));
}

/// The position of the newest event.
pub(crate) fn newest(client: &mut Client) -> i64 {
    client.query_one("SELECT max(global_position) FROM events", &[]).unwrap().get(0)
}

pub(crate) fn leave(handle: Handle) {
    handle.shutdown(Duration::from_secs(10)).unwrap();
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "nothing has changed for {PATIENCE:?}");
        pause(LOOK);
    }
}
