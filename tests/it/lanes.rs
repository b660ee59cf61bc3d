//! Workers that divide their part of a projection into lanes.

use std::collections::BTreeSet;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Event, Handle, Projection, ProjectionState, Retry, Tx};

use crate::support::cluster::{assert_keys_are_covered, newest, positions};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, await_progress, is_complete};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(10);

fn worker(database: &TestDatabase, lanes: usize, takes: u64) -> Handle {
    let ledger = Ledger { takes: Duration::from_millis(takes), ..Ledger::named("p") };
    start(builder(database.url(), "set").lanes(lanes), vec![Box::new(ledger)])
}

/// The number of lanes that own keys in the newest generation, for each worker.
fn lanes(client: &mut Client) -> Vec<i64> {
    let sql = "SELECT count(DISTINCT lane) FROM orchestrator_checkpoints GROUP BY worker_id ORDER BY 1";
    client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn workers_with_different_lanes_miss_and_repeat_nothing() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let four = worker(&database, 4, 1);
    await_running(&[&four]);
    append_plainly(&mut client, 3_000, 300);
    await_progress(&mut client, "p", 1);
    assert_eq!(lanes(&mut client), [4]);
    await_progress(&mut client, "p", 300);
    let (one, three) = (worker(&database, 1, 1), worker(&database, 3, 1));
    await_running(&[&four, &one, &three]);
    assert_eq!(lanes(&mut client), [1, 3, 4]);
    await_progress(&mut client, "p", 300);
    four.shutdown(SOON).unwrap();
    await_running(&[&one, &three]);
    append_plainly(&mut client, 500, 300);
    eventually("all events are handled", Duration::from_secs(30), || {
        assert_keys_are_covered(&mut client);
        is_complete(&mut client, "p").then_some(())
    });
    assert_exactly_once(&mut client, "p");
    // The live tail serves all lanes.
    append_plainly(&mut client, 500, 300);
    eventually("the newest events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    let head = newest(&mut client);
    eventually("one row is left for each lane, at the head", SOON, || {
        (positions(&mut client, "p") == [head; 4]).then_some(())
    });
    assert_eq!(
        (one.status().projections["p"].position, three.status().projections["p"].position),
        (Some(head), Some(head))
    );
}

/// Sends the name of the thread that handles, and waits until the test releases it.
struct Meets(Sender<String>, Receiver<()>);

impl Projection for Meets {
    fn name(&self) -> &str {
        "p"
    }

    fn handle(&self, _: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
        self.0.send(std::thread::current().name().unwrap_or_default().to_owned())?;
        Ok(self.1.recv()?)
    }
}

#[test]
fn lanes_handle_at_the_same_time() {
    let database = database();
    let mut client = database.client();
    let (arrived, arrivals) = bounded(10);
    let (let_go, go_on) = bounded::<()>(0);
    let worker = start(builder(database.url(), "set").lanes(3), vec![Box::new(Meets(arrived, go_on))]);
    append_plainly(&mut client, 100, 100);
    let threads: BTreeSet<String> = (0..3).map(|_| arrivals.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(threads.len(), 3, "{threads:?}");
    assert!(arrivals.is_empty(), "one event at a time in each lane");
    drop(let_go);
    worker.shutdown(SOON).unwrap();
}

/// Fails at the events of one aggregate.
struct Hates(&'static str);

impl Projection for Hates {
    fn name(&self) -> &str {
        "p"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        if event.aggregate_id() == self.0 {
            return Err("not that one".into());
        }
        Ledger::named("p").handle(tx, event)
    }
}

#[test]
fn a_halted_lane_is_shown_and_does_not_halt_the_others() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let retry = Retry::default().attempts(1);
    let worker = start(builder(database.url(), "set").lanes(2).retry(retry), vec![Box::new(Hates("thing-7"))]);
    append_plainly(&mut client, 100, 100);
    let hated = "SELECT CASE WHEN hashtextextended('thing-7', 0) & 65535 < 32768 THEN 0 ELSE 1 END";
    let hated: i32 = client.query_one(hated, &[]).unwrap().get(0);
    let missing = "SELECT count(*) FROM events e WHERE (hashtextextended(aggregate_id, 0) & 65535) / 32768 <> $1
                   AND NOT EXISTS (SELECT FROM ledger l WHERE l.global_position = e.global_position)";
    eventually("the other lane handles all that is its own", SOON, || {
        (client.query_one(missing, &[&i64::from(hated)]).unwrap().get::<_, i64>(0) == 0).then_some(())
    });
    // The other lane's last commit may be visible before the lane has updated its status.
    let halted_at = "SELECT position FROM orchestrator_checkpoints WHERE lane = $1";
    let shown = eventually("the projection shows as halted, at the lowest position", SOON, || {
        let shown = worker.status().projections["p"].clone();
        let halted_at: i64 = client.query_one(halted_at, &[&hated]).unwrap().get(0);
        (shown.state == ProjectionState::Halted && shown.position == Some(halted_at)).then_some(shown)
    });
    assert!(shown.error.unwrap().contains("not that one"));
    assert_eq!((shown.keys.to_string().as_str(), shown.position), ("{[0,65536)}", Some(7)));
    assert_exactly_once_but(&mut client, "thing-7");
}

/// Checks that no event was handled twice, and that no event of this aggregate was handled.
fn assert_exactly_once_but(client: &mut Client, aggregate: &str) {
    let sql =
        "SELECT count(*) - count(DISTINCT global_position), count(*) FILTER (WHERE aggregate_id = $1) FROM ledger";
    let row = client.query_one(sql, &[&aggregate]).unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (0, 0));
}
