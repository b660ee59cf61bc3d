//! Workers that were excluded while their handler was busy, and whose batch ends after its
//! generation has ended.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use pupsourcing_orchestrator::{BoxError, Builder, Event, Handle, Projection, Tx};

use crate::support::cluster::{assert_keys_are_covered, await_gone, backends_of, state_of};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::total;
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

/// A ledger that reports when it is in the middle of a batch, and stays there until the test
/// releases it.
struct Gated {
    ledger: Ledger,
    entered: Sender<()>,
    go_on: Receiver<()>,
}

impl Projection for Gated {
    fn name(&self) -> &str {
        self.ledger.name
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        self.ledger.handle(tx, event)?;
        _ = self.entered.try_send(());
        // When the channel is disconnected, every handler continues.
        _ = self.go_on.recv();
        Ok(())
    }
}

/// Gets a worker excluded in the middle of a batch, waits until another worker has done its work,
/// and then lets the batch end. Returns the excluded worker and those of its sessions that can be
/// found, which must be gone before the batch ends.
fn leave_out(database: &TestDatabase, builder: impl Fn() -> Builder) -> (Handle, Vec<i32>) {
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let (entered, was_entered) = bounded(1);
    let (let_go, go_on) = bounded(0);
    let zombie = start(builder(), vec![Box::new(Gated { ledger: Ledger::named("p"), entered, go_on })]);
    append_plainly(&mut client, 300, 30);
    was_entered.recv_timeout(Duration::from_secs(10)).unwrap();
    let sessions = backends_of(&mut client, zombie.worker_id(), false);

    let other = start(builder(), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&other]);
    assert_eq!(state_of(&mut client, zombie.worker_id()), ("stopped".into(), Some("not ready in time".into())));
    if !sessions.is_empty() {
        await_gone(&mut client, &sessions);
    }
    eventually("the other one handles every event", Duration::from_secs(10), || {
        is_complete(&mut client, "p").then_some(())
    });
    assert_exactly_once(&mut client, "p");
    drop(let_go);
    await_running(&[&zombie, &other]);
    assert_eq!(handled(&mut client, "p"), 300, "the zombie committed nothing");
    append_plainly(&mut client, 300, 30);
    eventually("all events are handled", Duration::from_secs(10), || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    assert_keys_are_covered(&mut client);
    (zombie, sessions)
}

#[test]
fn the_batch_of_an_excluded_worker_is_fenced() {
    let database = database();
    // Without session locks, its connections are not found and ended. The server does not end them
    // either, because it does so only for a session that is silent in a transaction for longer than
    // the stale timeout. So only the fence keeps the worker from committing.
    let (zombie, sessions) = leave_out(&database, || {
        builder(database.url(), "set")
            .heartbeats_only()
            .stale_worker_timeout(Duration::from_secs(60))
            .coordination_timeout(Duration::from_secs(1))
    });
    assert!(sessions.is_empty(), "its sessions cannot be found, and these were: {sessions:?}");
    assert_eq!(total(&zombie, "fenced_batches_total"), 1);
}

#[test]
fn the_connections_of_an_excluded_worker_are_ended() {
    let database = database();
    let (zombie, sessions) =
        leave_out(&database, || builder(database.url(), "set").coordination_timeout(Duration::from_secs(1)));
    // The connections of the coordinator, the listener, the tailer and the batch.
    assert!(sessions.len() >= 4, "{sessions:?}");
    assert!(total(&zombie, "retries_total") > 0, "its batch lost its connection");
    assert_eq!(total(&zombie, "fenced_batches_total"), 0, "there was nothing left to fence");
}
