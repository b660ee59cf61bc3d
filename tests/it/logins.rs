//! Workers of one replica set that log in as different users, as with leased credentials.

use std::time::Duration;

use crate::crashes::{Frozen, freeze_in_a_batch};
use crate::support::cluster::{assert_read_models_become_right, state_of};
use crate::support::database;
use crate::support::ledger::append_plainly;
use crate::support::worker_process::{Signal, WorkerProcess};

/// The `stale_worker_timeout`.
const STALE: Duration = Duration::from_secs(2);
/// The `coordination_timeout`.
const LONGEST_CALL: Duration = Duration::from_secs(5);

#[test]
fn locks_of_a_frozen_worker_of_another_login_are_released() {
    let database = database();
    let mut client = database.client();
    let (app, lease) = (format!("app_{}", std::process::id()), format!("lease_{}", std::process::id()));
    client
        .batch_execute(&format!(
            "CREATE ROLE {app}; CREATE ROLE {lease}_1 LOGIN IN ROLE {app}; CREATE ROLE {lease}_2 LOGIN IN ROLE {app};
             ALTER SCHEMA public OWNER TO {app}"
        ))
        .unwrap();
    let worker = |number: u32| {
        let url = database.url().replace("postgres@", &format!("{lease}_{number}@"));
        let url = format!("{url}{}options=-c%20role%3D{app}", if url.contains('?') { '&' } else { '?' });
        let stale = format!("{}s", STALE.as_secs());
        let longest_call = format!("{}s", LONGEST_CALL.as_secs());
        WorkerProcess::start(
            &url,
            &[
                ("HEARTBEAT_INTERVAL", "500ms"),
                ("STALE_WORKER_TIMEOUT", &stale),
                ("COORDINATION_TIMEOUT", &longest_call),
            ],
        )
    };
    let mut frozen = worker(1);
    frozen.await_processing(1);
    let mut other = worker(2);
    frozen.await_processing(2);
    other.await_processing(2);
    append_plainly(&mut client, 200, 50);
    assert_read_models_become_right(&mut client);

    let Frozen { begun, worker: frozen_id, batch, .. } = freeze_in_a_batch(&mut client, &mut frozen);
    let (_, line) = other.await_line(&[
        "session of an evicted worker cannot be ended: ",
        &format!(" worker={frozen_id} pid={batch} user={lease}_1"),
    ]);
    println!("{line}");
    let took = other.await_processing(1) - begun;
    println!("SIGSTOP to resumed: {took:?}, with a coordination_timeout of {LONGEST_CALL:?}");
    // The wait for a lock may begin again just before the session ends.
    assert!(took < STALE + LONGEST_CALL + Duration::from_secs(4), "{took:?}");
    assert_eq!(state_of(&mut client, frozen_id), ("stopped".into(), Some("heartbeats stopped".into())));
    assert_read_models_become_right(&mut client);

    frozen.signal(Signal::CONT);
    frozen.await_line(&["registering again"]);
    frozen.await_processing(2);
    append_plainly(&mut client, 400, 50);
    assert_read_models_become_right(&mut client);
}

#[test]
fn a_worker_that_may_signal_backends_ends_any_session() {
    let database = database();
    let mut client = database.client();
    let (one, other) = (format!("signalled_{}", std::process::id()), format!("signaller_{}", std::process::id()));
    client
        .batch_execute(&format!(
            "CREATE ROLE {one}_app; CREATE ROLE {one} LOGIN IN ROLE {one}_app;
             CREATE ROLE {other} LOGIN IN ROLE {one}_app, pg_signal_backend; ALTER SCHEMA public OWNER TO {one}_app"
        ))
        .unwrap();
    let worker = |user: &str, role: &str| {
        let url = database.url().replace("postgres@", &format!("{user}@"));
        let url = format!("{url}{}options=-c%20role%3D{role}", if url.contains('?') { '&' } else { '?' });
        WorkerProcess::start(&url, &[("HEARTBEAT_INTERVAL", "500ms"), ("STALE_WORKER_TIMEOUT", "2s")])
    };
    let mut frozen = worker(&one, &format!("{one}_app"));
    frozen.await_processing(1);
    let mut signaller = worker(&other, &other);
    frozen.await_processing(2);
    signaller.await_processing(2);
    append_plainly(&mut client, 200, 50);
    assert_read_models_become_right(&mut client);
    let Frozen { begun, .. } = freeze_in_a_batch(&mut client, &mut frozen);
    let took = signaller.await_processing(1) - begun;
    assert!(took < STALE + Duration::from_secs(2), "{took:?}");
    assert_read_models_become_right(&mut client);
    assert!(signaller.log().iter().all(|line| !line.contains("cannot be ended")));
    frozen.signal(Signal::CONT);
}
