//! The method `caught_up`, which is called once when a projection has caught up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Builder, Event, Handle, Projection, Tx};
use serde_json::json;

use crate::support::commands::done;
use crate::support::ledger::append_plainly;
use crate::support::rebuilds::Model;
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(30);

/// What happens when the projection has caught up.
type Then = dyn Fn(&mut Tx<'_>) -> Result<(), BoxError> + Send + Sync;

/// A read model that records in the table `arrivals` how many events it has when it has caught up.
#[derive(Clone)]
struct Arriving {
    model: Model,
    then: Arc<Then>,
}

impl Arriving {
    fn new(then: impl Fn(&mut Tx<'_>) -> Result<(), BoxError> + Send + Sync + 'static) -> Self {
        Self { model: Model::named("orders"), then: Arc::new(then) }
    }

    fn create_tables(&self, client: &mut Client) {
        self.model.create_table(client);
        client.batch_execute("CREATE TABLE arrivals (events bigint, positions bigint)").unwrap();
    }
}

impl Projection for Arriving {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn tables(&self) -> &[&str] {
        self.model.tables()
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        self.model.reset(tx, to)
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        self.model.handle(tx, event)
    }

    fn caught_up(&self, tx: &mut Tx<'_>) -> Result<(), BoxError> {
        tx.execute("INSERT INTO arrivals SELECT count(*), count(DISTINCT global_position) FROM orders", &[])?;
        (self.then)(tx)
    }
}

fn start_two(database: &TestDatabase, projection: &Arriving) -> [Handle; 2] {
    let worker = || start(builder(database.url(), "set"), vec![Box::new(projection.clone())]);
    let handles = [worker(), worker()];
    await_running(&[&handles[0], &handles[1]]);
    handles
}

fn arrivals(client: &mut Client) -> Vec<(i64, i64)> {
    let rows = client.query("SELECT events, positions FROM arrivals ORDER BY ctid", &[]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[track_caller]
fn await_arrivals(client: &mut Client, number: usize) {
    eventually("the projection has caught up", SOON, || (arrivals(client).len() == number).then_some(()));
}

/// Waits until every part of the projection is at this position in the database.
#[track_caller]
fn await_position(client: &mut Client, position: i64) {
    let sql = "SELECT min(position) >= $1 FROM orchestrator_checkpoints WHERE projection = 'orders'";
    eventually("all events are handled", SOON, || {
        client.query_one(sql, &[&position]).unwrap().get::<_, Option<bool>>(0).filter(|is_there| *is_there)
    });
}

fn stop(handles: impl IntoIterator<Item = Handle>) {
    for handle in handles {
        handle.shutdown(SOON).unwrap();
    }
}

#[test]
fn it_is_called_once_after_the_start_a_rewind_and_a_rebuild() {
    let (database, projection) = (database(), Arriving::new(|_| Ok(())));
    let mut client = database.client();
    projection.create_tables(&mut client);
    let first = start(builder(database.url(), "set"), vec![Box::new(projection.clone())]);
    // Without an event, the projection has caught up as well.
    await_arrivals(&mut client, 1);
    stop([first]);

    append_plainly(&mut client, 500, 40);
    let handles = start_two(&database, &projection);
    await_position(&mut client, 500);
    done(&mut client, "orders", "rewind", &json!({"to_position": 100}));
    await_arrivals(&mut client, 2);
    done(&mut client, "orders", "rebuild", &json!({"rate": null}));
    await_arrivals(&mut client, 3);
    append_plainly(&mut client, 50, 40);
    await_position(&mut client, 550);
    stop(handles);
    stop(start_two(&database, &projection));
    assert_eq!(arrivals(&mut client), [(0, 0), (500, 500), (500, 500)]);
}

/// Lets the projection fail as often as it is told, and counts its calls.
fn failing(times: usize) -> (Arriving, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let projection = Arriving::new(move |_| match counted.fetch_add(1, Ordering::SeqCst) {
        call if call < times => Err("not yet".into()),
        _ => Ok(()),
    });
    (projection, calls)
}

fn impatient(database: &TestDatabase) -> Builder {
    let delay = Duration::from_millis(20);
    let retry = pupsourcing_orchestrator::Retry::default().first_delay(delay).longest_delay(delay);
    builder(database.url(), "set").retry(retry)
}

#[test]
fn an_error_of_it_is_retried_while_events_are_handled() {
    let (database, (projection, calls)) = (database(), failing(1_000_000));
    let mut client = database.client();
    projection.create_tables(&mut client);
    let handle = start(impatient(&database), vec![Box::new(projection)]);
    eventually("it is called again and again", SOON, || (calls.load(Ordering::SeqCst) >= 3).then_some(()));
    append_plainly(&mut client, 10, 3);
    await_position(&mut client, 10);
    stop([handle]);
    assert_eq!(arrivals(&mut client), []);

    let (projection, _) = failing(2);
    let handle = start(impatient(&database), vec![Box::new(projection)]);
    await_arrivals(&mut client, 1);
    stop([handle]);
    assert_eq!(arrivals(&mut client), [(10, 10)]);
}

#[test]
fn it_waits_for_the_parts_of_all_workers() {
    let (go_on, waiting): (_, Receiver<()>) = bounded(0);
    let (database, mut projection) = (database(), Arriving::new(|_| Ok(())));
    projection.model = projection.model.before(move |_, event| {
        if event.aggregate_id() == "thing-0" {
            _ = waiting.recv();
        }
        Ok(())
    });
    let mut client = database.client();
    projection.create_tables(&mut client);
    let first = start(builder(database.url(), "set"), vec![Box::new(projection.clone())]);
    await_arrivals(&mut client, 1);
    done(&mut client, "orders", "pause", &json!({}));
    stop([first]);
    append_plainly(&mut client, 200, 20);
    client.execute("UPDATE orchestrator_projections SET caught_up_at = NULL", &[]).unwrap();
    let handles = start_two(&database, &projection);
    done(&mut client, "orders", "resume", &json!({}));
    let sql = "SELECT count(*) FROM orchestrator_checkpoints WHERE projection = 'orders' AND position >= 200";
    eventually("one part has caught up", SOON, || {
        (client.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 1).then_some(())
    });
    assert_eq!(arrivals(&mut client).len(), 1);
    drop(go_on);
    await_arrivals(&mut client, 2);
    stop(handles);
    assert_eq!(arrivals(&mut client)[1], (200, 200));
}
