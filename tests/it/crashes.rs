//! Processes that are killed or frozen.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use postgres::Client;
use pupsourcing_orchestrator::WorkerId;

use crate::support::cluster::{
    assert_keys_are_covered, assert_read_models_become_right, await_gone, backends_of, state_of, worker_of,
};
use crate::support::ledger::append_plainly;
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::{database, eventually};

/// The longest time from the detection of a dead worker until its keys are processed again.
/// `benches/reconfiguration` measures against the same limit.
const RESUMED_WITHIN: Duration = Duration::from_secs(2);
/// The `stale_worker_timeout` of the workers that are frozen.
const STALE: Duration = Duration::from_secs(2);

#[test]
fn a_killed_process_is_replaced_within_moments() {
    let database = database();
    let mut client = database.client();
    // Neither a long `registration_wait` nor the long intervals of the survivor may delay the
    // takeover of the orphaned partition.
    let seldom = [("POLL_INTERVAL", "60s"), ("HEARTBEAT_INTERVAL", "20s"), ("STALE_WORKER_TIMEOUT", "60s")];
    let options: Vec<_> = seldom.into_iter().chain([("REGISTRATION_WAIT", "20s")]).collect();
    let mut survivor = WorkerProcess::start(database.url(), &options);
    survivor.await_processing(1);
    let mut victim = WorkerProcess::start(database.url(), &[]);
    survivor.await_processing(2);
    victim.await_processing(2);
    append_plainly(&mut client, 3_000, 100);

    let begun = Instant::now();
    victim.signal(Signal::KILL);
    let took = survivor.await_processing(1) - begun;
    println!("kill -9 to resumed: {took:?}");
    assert!(took < RESUMED_WITHIN, "{took:?}");
    let victim_id = worker_of(&mut client, victim.pid());
    assert_eq!(state_of(&mut client, victim_id), ("stopped".into(), Some("session lost".into())));
    append_plainly(&mut client, 1_000, 100);
    assert_read_models_become_right(&mut client);
    assert_keys_are_covered(&mut client);
}

/// Makes every writer to `aggregate_activity` wait, within its transaction, while another session
/// holds the lock 42.
const GATE: &str = "
    CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NEW; END $$;
    CREATE TRIGGER gate BEFORE INSERT ON aggregate_activity FOR EACH ROW EXECUTE FUNCTION gate();
    SELECT pg_advisory_lock(42);";

/// A worker that was frozen in the middle of a batch.
pub(crate) struct Frozen {
    pub(crate) begun: Instant,
    pub(crate) worker: WorkerId,
    /// The server processes of all its sessions, and the one of the batch.
    pub(crate) sessions: Vec<i32>,
    pub(crate) batch: i32,
}

/// Appends events, and freezes the worker when its transaction holds row locks.
pub(crate) fn freeze_in_a_batch(client: &mut Client, process: &mut WorkerProcess) -> Frozen {
    client.batch_execute(GATE).unwrap();
    append_plainly(client, 400, 50);
    let worker = worker_of(client, process.pid());
    let batch = eventually("it is in the middle of a batch", Duration::from_secs(10), || {
        let backends = backends_of(client, worker, false);
        let sql =
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted AND pid = ANY ($1)";
        client.query_opt(sql, &[&backends]).unwrap().map(|row| row.get::<_, i32>(0))
    });
    let sessions = backends_of(client, worker, false);
    assert!(sessions.contains(&batch), "{batch} in {sessions:?}");
    let begun = Instant::now();
    process.signal(Signal::STOP);
    client.batch_execute("SELECT pg_advisory_unlock(42)").unwrap();
    eventually("its transaction stays open, holding row locks", Duration::from_secs(1), || {
        let sql = "SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'idle in transaction'";
        client.query_opt(sql, &[&batch]).unwrap()
    });
    Frozen { begun, worker, sessions, batch }
}

#[test]
fn a_process_frozen_in_a_transaction_is_replaced_and_comes_back() {
    let database = database();
    let mut client = database.client();
    let stale = format!("{}s", STALE.as_secs());
    let short = [("HEARTBEAT_INTERVAL", "500ms"), ("STALE_WORKER_TIMEOUT", &stale)];
    let mut frozen = WorkerProcess::start(database.url(), &short);
    frozen.await_processing(1);
    let mut other = WorkerProcess::start(database.url(), &short);
    frozen.await_processing(2);
    other.await_processing(2);
    append_plainly(&mut client, 200, 50);
    assert_read_models_become_right(&mut client);

    let Frozen { begun, worker: frozen_id, sessions, .. } = freeze_in_a_batch(&mut client, &mut frozen);
    let took = other.await_processing(1) - begun;
    println!("SIGSTOP to resumed: {took:?}, with a stale_worker_timeout of 2 s");
    assert!(took < STALE + RESUMED_WITHIN, "{took:?}");
    await_gone(&mut client, &sessions);
    assert_eq!(state_of(&mut client, frozen_id), ("stopped".into(), Some("heartbeats stopped".into())));
    // This includes the rows of the unfinished batch.
    assert_read_models_become_right(&mut client);
    assert_eq!(backends_of(&mut client, frozen_id, false), [] as [i32; 0], "its sessions are ended");

    frozen.signal(Signal::CONT);
    frozen.await_line(&["registering again"]);
    frozen.await_processing(2);
    append_plainly(&mut client, 400, 50);
    assert_read_models_become_right(&mut client);
    assert_keys_are_covered(&mut client);
}

#[test]
fn a_frozen_process_is_replaced_when_the_clock_was_set_back() {
    let database = database();
    let mut client = database.client();
    let stale = format!("{}s", STALE.as_secs());
    let short = [("HEARTBEAT_INTERVAL", "500ms"), ("STALE_WORKER_TIMEOUT", &stale)];
    let mut frozen = WorkerProcess::start(database.url(), &short);
    frozen.await_processing(1);
    let mut other = WorkerProcess::start(database.url(), &short);
    frozen.await_processing(2);
    other.await_processing(2);
    frozen.signal(Signal::STOP);
    let frozen_id = worker_of(&mut client, frozen.pid());
    // As if the clock was set back by an hour: every moment that was recorded before is in the
    // future.
    client
        .batch_execute(&format!(
            "UPDATE orchestrator_workers SET last_heartbeat = last_heartbeat + interval '1 hour',
                 started_at = started_at + interval '1 hour' WHERE id = '{frozen_id}';
             UPDATE orchestrator_generations SET created_at = created_at + interval '1 hour'"
        ))
        .unwrap();
    let begun = Instant::now();
    let took = other.await_processing(1) - begun;
    assert!(took < STALE + RESUMED_WITHIN, "{took:?}");
    assert_eq!(state_of(&mut client, frozen_id), ("stopped".into(), Some("heartbeats stopped".into())));
    frozen.signal(Signal::CONT);
    frozen.await_processing(2);
}

#[test]
fn a_worker_after_a_crash_names_the_event_that_caused_it() {
    let database = database();
    let mut client = database.client();
    let start = |options: &[(&str, &str)]| WorkerProcess::start_program("chaos_worker", database.url(), options);
    let mut victim = start(&[("ABORT_ON", "Happened")]);
    victim.await_processing(1);
    append_plainly(&mut client, 1, 1);
    assert_eq!(victim.await_end().signal(), Some(Signal::ABORT.as_raw()));
    let mut next = start(&[]);
    let (_, line) = next.await_line(&[
        "WARN",
        "attempts were interrupted, will retry: replica_set=chaos worker=",
        "projection=event_type_counts attempts=1 error=",
    ]);
    for part in ["Happened", "thing-0", "global position 1 "] {
        assert!(line.contains(part), "{line}");
    }
    assert_read_models_become_right(&mut client);
}
