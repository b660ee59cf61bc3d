//! Reads the state of replica sets, workers, checkpoints and the example's read models.

use std::time::Duration;

use postgres::{Client, GenericClient};
use pupsourcing_orchestrator::WorkerId;

use super::eventually;

/// The newest generation of the replica set `set`.
pub(crate) fn generation(client: &mut impl GenericClient) -> i64 {
    let sql = "SELECT coalesce(max(number), 0) FROM orchestrator_generations WHERE replica_set = 'set'";
    client.query_one(sql, &[]).unwrap().get(0)
}

/// State and, if it is stopped, the reason.
pub(crate) fn state_of(client: &mut impl GenericClient, worker: WorkerId) -> (String, Option<String>) {
    let row = client
        .query_one("SELECT state, stop_reason FROM orchestrator_workers WHERE id = $1", &[&worker.0])
        .expect("the worker is known");
    (row.get(0), row.get(1))
}

/// The worker a process has registered.
pub(crate) fn worker_of(client: &mut impl GenericClient, pid: i32) -> WorkerId {
    WorkerId(client.query_one("SELECT id FROM orchestrator_workers WHERE pid = $1", &[&pid]).unwrap().get(0))
}

/// The server processes that hold a session lock of the worker: all, or only the one whose lock
/// says "alive".
pub(crate) fn backends_of(client: &mut impl GenericClient, worker: WorkerId, alive_only: bool) -> Vec<i32> {
    let sql =
        "SELECT DISTINCT l.pid FROM orchestrator_workers w JOIN pg_locks l ON l.locktype = 'advisory' AND l.granted
                   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND l.objsubid = 2 AND l.classid = w.session_class::oid
               WHERE w.id = $1 AND (l.pid = w.session_pid OR NOT $2) ORDER BY 1";
    client.query(sql, &[&worker.0, &alive_only]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// Waits until the server has ended all these processes, which takes it a moment.
#[track_caller]
pub(crate) fn await_gone(client: &mut impl GenericClient, backends: &[i32]) {
    assert!(!backends.is_empty(), "there is nothing to wait for");
    eventually("the sessions have ended", Duration::from_secs(2), || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1)";
        (client.query_one(sql, &[&backends]).unwrap().get::<_, i64>(0) == 0).then_some(())
    });
}

/// Ends server processes.
pub(crate) fn terminate(client: &mut impl GenericClient, backends: &[i32]) {
    let ended: bool = client
        .query_one(
            "SELECT coalesce(bool_and(pg_terminate_backend(pid)), false) FROM unnest($1::int[]) AS pid",
            &[&backends],
        )
        .unwrap()
        .get(0);
    assert!(ended, "not all of {backends:?} were there");
}

/// Waits until a session of this database waits for a lock.
#[track_caller]
pub(crate) fn await_blocked(client: &mut impl GenericClient) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("a session waits for a lock", Duration::from_secs(15), || {
        (client.query_one(sql, &[]).unwrap().get::<_, i64>(0) > 0).then_some(())
    });
}

/// Checks that the key sets of every projection's checkpoints are disjoint and cover the key space.
#[track_caller]
pub(crate) fn assert_keys_are_covered(client: &mut impl GenericClient) {
    let sql = "SELECT projection, range_agg(piece)::text, sum(upper(piece) - lower(piece))
               FROM orchestrator_checkpoints, unnest(keys) AS piece GROUP BY projection";
    let rows = client.query(sql, &[]).unwrap();
    assert!(!rows.is_empty(), "no checkpoint at all");
    for row in rows {
        let found: (String, String, i64) = (row.get(0), row.get(1), row.get(2));
        assert_eq!((found.1.as_str(), found.2), ("{[0,65536)}", 65_536), "keys of {}", found.0);
    }
}

/// The position of each checkpoint of the projection, ascending.
pub(crate) fn positions(client: &mut impl GenericClient, projection: &str) -> Vec<i64> {
    let sql = "SELECT position FROM orchestrator_checkpoints WHERE projection = $1 ORDER BY 1";
    client.query(sql, &[&projection]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// The position of the newest event.
pub(crate) fn newest(client: &mut impl GenericClient) -> i64 {
    client.query_one("SELECT max(global_position) FROM events", &[]).unwrap().get(0)
}

/// Waits until both read models of the example `worker` have as many events as there are, then
/// compares them with the events.
#[track_caller]
pub(crate) fn assert_read_models_become_right(client: &mut Client) {
    let sql = "SELECT (SELECT count(*) FROM events) <= ALL (SELECT coalesce(sum(events), 0) FROM event_type_counts
                                                         UNION ALL SELECT coalesce(sum(events), 0) FROM aggregate_activity)";
    eventually("the read models have all events", Duration::from_secs(20), || {
        client.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    let sql = "SELECT
        (SELECT count(*) FROM (SELECT event_type, count(*) AS n FROM events GROUP BY 1) e
         FULL JOIN event_type_counts c USING (event_type) WHERE c.events IS DISTINCT FROM e.n),
        (SELECT count(*) FROM (SELECT bounded_context, aggregate_type, aggregate_id, count(*) AS n, max(aggregate_version) AS version
                               FROM events GROUP BY 1, 2, 3) e
         FULL JOIN aggregate_activity a USING (bounded_context, aggregate_type, aggregate_id)
         WHERE (a.events, a.last_version, a.out_of_order) IS DISTINCT FROM (e.n, e.version, 0::bigint))";
    let row = client.query_one(sql, &[]).unwrap();
    let wrong: (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(wrong, (0, 0), "wrong rows of event_type_counts and aggregate_activity");
}
