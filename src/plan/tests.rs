//! Tables: each test lists views and the actions that they lead to.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::*;

const POLICY: Policy = Policy {
    stale_worker_timeout: Duration::from_secs(30),
    session_loss_grace: Some(Duration::from_secs(1)),
    coordination_timeout: Duration::from_secs(60),
    registration_wait: Duration::from_secs(1),
};

pub(crate) fn id(n: u128) -> WorkerId {
    WorkerId(Uuid::from_u128(n))
}

/// Seconds on the server's clock.
fn at(seconds: i64) -> ServerTime {
    ServerTime(seconds * 1_000_000)
}

pub(crate) fn worker(n: u128, state: WorkerState, generation: i64, partition: Option<usize>) -> WorkerView {
    WorkerView {
        id: id(n),
        state,
        generation,
        partition,
        session: Session::Held,
        registered_at: at(0),
        last_heartbeat: at(100),
        projections: ["orders", "invoices"].map(|name| Code { name: name.into(), version: 1, lanes: 1 }).into(),
        build: None,
    }
}

fn running(n: u128, partition: usize) -> WorkerView {
    worker(n, WorkerState::Running, 5, Some(partition))
}

fn joined(n: u128, registered_at: i64) -> WorkerView {
    WorkerView { registered_at: at(registered_at), ..worker(n, WorkerState::Pending, 0, None) }
}

/// At second 100, generation 5 created at second 90.
pub(crate) fn view(state: GenerationState, total_partitions: usize, workers: Vec<WorkerView>) -> ClusterView {
    ClusterView {
        now: at(100),
        observing_since: at(0),
        generation: Some(GenerationView { number: 5, state, total_partitions, created_at: at(90) }),
        workers,
        projections: vec![projection("orders", DesiredState::Running, DesiredState::Running)],
        unclaimed: vec![],
        commands: vec![],
    }
}

pub(crate) fn projection(name: &str, desired: DesiredState, dealt: DesiredState) -> ProjectionView {
    ProjectionView {
        name: name.into(),
        version: 1,
        build: None,
        desired,
        is_clearing: false,
        dealt,
        deal: 1,
        rows: Rows::AsDealt,
        withdrawn: None,
    }
}

fn share(worker: u128, k: usize, total: usize) -> Share {
    Share { worker: id(worker), lane: 0, keys: KeySet::partition(k, total) }
}

fn create(cause: Cause, members: &[u128]) -> Action {
    Action::CreateGeneration { number: 6, cause, members: members.iter().map(|n| id(*n)).collect() }
}

use GenerationState::{Active, Pending};

#[test]
fn first_start_waits_for_no_other_worker() {
    let view = ClusterView { generation: None, ..view(Active, 0, vec![joined(1, 100)]) };
    let expected = Action::CreateGeneration { number: 1, cause: Cause::Started, members: vec![id(1)] };
    assert_eq!(plan(&view, &POLICY).actions, [expected]);
}

#[test]
fn empty_replica_set_needs_no_action() {
    assert_eq!(plan(&view(Active, 2, vec![]), &POLICY).actions, []);
}

#[test]
fn complete_active_generation_needs_no_action() {
    let plan = plan(&view(Active, 2, vec![running(1, 0), running(2, 1)]), &POLICY);
    assert_eq!(plan.actions, []);
    assert_eq!(plan.recheck_after, Some(Duration::from_secs(30)), "when heartbeats would be stale");
}

#[test]
fn joins_are_gathered_from_the_first_one() {
    let young = plan(&view(Active, 1, vec![running(1, 0), joined(2, 100)]), &POLICY);
    assert_eq!(young.actions, []);
    assert_eq!(young.recheck_after, Some(Duration::from_secs(1)));

    let due = view(Active, 1, vec![running(1, 0), joined(3, 100), joined(2, 99)]);
    assert_eq!(plan(&due, &POLICY).actions, [create(Cause::Joined, &[1, 2, 3])]);
}

#[test]
fn worker_leaving_without_a_partition_costs_no_generation() {
    let leaving = WorkerView { state: WorkerState::Stopping, ..joined(2, 50) };
    assert_eq!(plan(&view(Active, 1, vec![running(1, 0), leaving]), &POLICY).actions, []);
}

#[test]
fn departure_creates_a_generation_at_once_with_young_joiners() {
    let view = view(Active, 2, vec![running(1, 0), joined(3, 100)]);
    assert_eq!(plan(&view, &POLICY).actions, [create(Cause::Departed, &[1, 3])]);
}

#[test]
fn joiner_starts_at_once_when_no_member_is_left() {
    assert_eq!(plan(&view(Active, 3, vec![joined(9, 100)]), &POLICY).actions, [create(Cause::Started, &[9])]);
    assert_eq!(plan(&view(Pending, 3, vec![joined(9, 100)]), &POLICY).actions, [create(Cause::Started, &[9])]);
}

#[test]
fn partitions_keep_their_order() {
    let view = view(Active, 4, vec![joined(1, 50), running(9, 0), running(4, 3), running(7, 1)]);
    assert_eq!(plan(&view, &POLICY).actions, [create(Cause::Departed, &[9, 7, 4, 1])]);
}

#[test]
fn draining_worker_keeps_its_partition() {
    let leaving = WorkerView { state: WorkerState::Stopping, ..running(2, 1) };
    assert_eq!(plan(&view(Active, 2, vec![running(1, 0), leaving.clone()]), &POLICY).actions, []);
    // It gets none in the next generation.
    let view = view(Active, 3, vec![running(1, 0), leaving]);
    assert_eq!(plan(&view, &POLICY).actions, [create(Cause::Departed, &[1])]);
}

#[test]
fn last_worker_to_leave_creates_no_generation() {
    let leaving = WorkerView { state: WorkerState::Stopping, ..running(2, 1) };
    assert_eq!(plan(&view(Active, 2, vec![leaving]), &POLICY).actions, []);
}

#[test]
fn worker_with_a_stale_heartbeat_is_evicted() {
    let stale = WorkerView { last_heartbeat: at(70), ..running(2, 1) };
    let mut view = view(Active, 2, vec![running(1, 0), stale]);
    let evicted = [Action::Evict(id(2), Death::Stale), create(Cause::Departed, &[1])];
    assert_eq!(plan(&view, &POLICY).actions, evicted);
    // No worker is judged by what happened before the observer's session existed.
    view.observing_since = at(71);
    assert_eq!(plan(&view, &POLICY).actions, []);
    assert_eq!(plan(&view, &POLICY).recheck_after, Some(Duration::from_secs(1)));
}

#[test]
fn lost_session_is_recorded_then_regained_or_evicted() {
    let with = |session| view(Active, 2, vec![running(1, 0), WorkerView { session, ..running(2, 1) }]);

    let noted = plan(&with(Session::Missing), &POLICY);
    assert_eq!(noted.actions, [Action::NoteSessionLost(id(2))]);
    assert_eq!(noted.recheck_after, Some(Duration::from_secs(1)), "the grace period decides when to look again");

    assert_eq!(plan(&with(Session::LostSince(at(100))), &POLICY).actions, []);
    assert_eq!(plan(&with(Session::Regained), &POLICY).actions, [Action::NoteSessionRegained(id(2))]);
    let evicted = [Action::Evict(id(2), Death::SessionLost), create(Cause::Departed, &[1])];
    assert_eq!(plan(&with(Session::LostSince(at(99))), &POLICY).actions, evicted);

    // After a restart of the server the grace period starts again.
    let restarted = ClusterView { observing_since: at(100), ..with(Session::LostSince(at(50))) };
    assert_eq!(plan(&restarted, &POLICY).actions, []);

    let heartbeats_only = Policy { session_loss_grace: None, ..POLICY };
    assert_eq!(plan(&with(Session::LostSince(at(50))), &heartbeats_only).actions, []);
}

#[test]
fn a_generation_is_activated_when_all_are_ready() {
    let ready = |n, k| worker(n, WorkerState::Ready, 5, Some(k));
    let pending = |n, k| worker(n, WorkerState::Pending, 5, Some(k));
    let complete = ClusterView {
        projections: vec![
            projection("orders", DesiredState::Running, DesiredState::Running),
            projection("invoices", DesiredState::Paused, DesiredState::Running),
        ],
        ..view(Pending, 2, vec![ready(1, 1), ready(2, 0)])
    };
    let of = |projection: &str, desired, shares| Deal { projection: projection.into(), desired, shares };
    let deals = vec![
        of("orders", DesiredState::Running, vec![share(2, 0, 2), share(1, 1, 2)]),
        of("invoices", DesiredState::Paused, vec![]),
    ];
    assert_eq!(plan(&complete, &POLICY).actions, [Action::Activate { number: 5, deals }]);
    let waiting = view(Pending, 2, vec![ready(1, 0), pending(2, 1)]);
    assert_eq!(plan(&waiting, &POLICY).actions, []);

    let late = ClusterView {
        generation: Some(GenerationView { created_at: at(40), ..waiting.generation.clone().unwrap() }),
        ..waiting
    };
    let left_out = [Action::Evict(id(2), Death::NotReady), create(Cause::Departed, &[1])];
    assert_eq!(plan(&late, &POLICY).actions, left_out);
}

#[test]
fn joiners_wait_for_a_pending_generation_to_become_active() {
    let view = view(Pending, 1, vec![worker(1, WorkerState::Pending, 5, Some(0)), joined(2, 50)]);
    assert_eq!(plan(&view, &POLICY).actions, []);
}

#[test]
fn death_during_a_pending_generation_creates_another() {
    let view = view(Pending, 2, vec![worker(1, WorkerState::Ready, 5, Some(0)), joined(2, 50)]);
    assert_eq!(plan(&view, &POLICY).actions, [create(Cause::Departed, &[1, 2])]);
}

#[test]
fn a_projection_is_dealt_alone_when_its_desired_state_changes() {
    use DesiredState::{Paused, Running};
    let with = |desired, dealt| ClusterView {
        projections: vec![projection("invoices", Running, Running), projection("orders", desired, dealt)],
        ..view(Active, 3, vec![running(1, 0), running(2, 1), running(3, 2)])
    };
    let dealt =
        |desired, shares| Action::Deal { generation: 5, deal: Deal { projection: "orders".into(), desired, shares } };
    assert_eq!(plan(&with(Paused, Running), &POLICY).actions, [dealt(Paused, vec![])]);
    assert_eq!(plan(&with(Paused, Paused), &POLICY).actions, []);
    let all = vec![share(1, 0, 3), share(2, 1, 3), share(3, 2, 3)];
    assert_eq!(plan(&with(Running, Paused), &POLICY).actions, [dealt(Running, all)]);

    let mut leaving = with(Running, Paused);
    leaving.workers[1].state = WorkerState::Stopping;
    assert_eq!(plan(&leaving, &POLICY).actions, [dealt(Running, vec![share(1, 0, 2), share(3, 1, 2)])]);

    let mut missing = with(Running, Paused);
    missing.workers[1].session = Session::Missing;
    let noted = plan(&missing, &POLICY);
    assert_eq!(noted.actions, [Action::NoteSessionLost(id(2))], "in a transaction of its own");
    assert_eq!(noted.recheck_after, Some(Duration::ZERO));

    let pending = ClusterView { generation: view(Pending, 3, vec![]).generation, ..with(Running, Paused) };
    assert!(!plan(&pending, &POLICY).actions.iter().any(|action| matches!(action, Action::Deal { .. })));
    let joins = ClusterView { workers: [pending.workers, vec![joined(4, 50)]].concat(), ..with(Running, Paused) };
    assert_eq!(plan(&joins, &POLICY).actions, [create(Cause::Joined, &[1, 2, 3, 4])], "then with all the others");
}

#[test]
fn rows_changed_by_hand_are_repaired_or_withdrawn_alone() {
    use DesiredState::{Paused, Running};
    let dealt = |desired, shares| {
        let deal = Deal { projection: "orders".into(), desired, shares };
        vec![Action::Deal { generation: 5, deal }]
    };
    let both = || vec![share(1, 0, 2), share(2, 1, 2)];
    let withdrawn = |fault| vec![Action::Withdraw("orders".into(), fault)];
    let (missing, torn) = (Rows::Unusable(Fault::Missing), Rows::Unusable(Fault::Torn));
    for (desired, before, rows, fault, expected) in [
        (Running, Running, Rows::AsDealt, None, vec![]),
        (Running, Running, Rows::NotInspected, None, vec![]),
        (Running, Running, Rows::Whole, None, dealt(Running, both())),
        (Paused, Paused, Rows::AsDealt, None, vec![]),
        (Paused, Paused, Rows::Whole, None, dealt(Paused, vec![])),
        (Running, Running, missing, None, withdrawn(Fault::Missing)),
        (Running, Running, torn, None, withdrawn(Fault::Torn)),
        (Running, Running, torn, Some(Fault::Missing), withdrawn(Fault::Torn)),
        (Running, Running, torn, Some(Fault::Torn), vec![]),
        // No action is taken until the rows are known to be repaired.
        (Paused, Running, torn, Some(Fault::Torn), vec![]),
        (Paused, Running, Rows::NotInspected, Some(Fault::Torn), vec![]),
        (Running, Running, Rows::NotInspected, Some(Fault::Torn), vec![]),
        (Running, Running, Rows::Whole, Some(Fault::Torn), dealt(Running, both())),
    ] {
        let edited = ProjectionView { rows, withdrawn: fault, ..projection("orders", desired, before) };
        let sound = projection("invoices", Running, Running);
        let view =
            ClusterView { projections: vec![edited, sound], ..view(Active, 2, vec![running(1, 0), running(2, 1)]) };
        assert_eq!(plan(&view, &POLICY).actions, expected, "{desired:?} {before:?} {rows:?} {fault:?}");
    }
}

#[test]
fn projection_that_no_running_worker_knows_is_not_dealt() {
    let new =
        ProjectionView { rows: Rows::Whole, ..projection("customers", DesiredState::Running, DesiredState::Running) };
    let known = [Code { name: "customers".into(), version: 1, lanes: 1 }].into();
    let joiner = WorkerView { projections: known, ..joined(2, 100) };
    let view = ClusterView { projections: vec![new], ..view(Active, 1, vec![running(1, 0), joiner]) };
    assert_eq!(plan(&view, &POLICY).actions, [], "it is dealt in the joiner's generation");
}

#[test]
fn deleted_projection_begins_again_if_a_worker_knows_it() {
    let unclaimed = |name: &str, owner: Option<&str>| Unclaimed { name: name.into(), owner: owner.map(Arc::from) };
    let all = vec![unclaimed("customers", None), unclaimed("invoices", Some("another")), unclaimed("orders", None)];
    let with = |generation| ClusterView {
        unclaimed: all.clone(),
        projections: vec![],
        ..view(generation, 1, vec![running(1, 0)])
    };
    assert_eq!(plan(&with(Active), &POLICY).actions, [Action::Begin("orders".into())]);
    assert_eq!(plan(&with(Pending), &POLICY).actions, [], "then after the activation");
}

#[test]
fn generation_is_activated_without_unusable_projections() {
    let torn = ProjectionView {
        rows: Rows::Unusable(Fault::Torn),
        ..projection("invoices", DesiredState::Running, DesiredState::Running)
    };
    let sound = projection("orders", DesiredState::Running, DesiredState::Running);
    let ready = worker(1, WorkerState::Ready, 5, Some(0));
    let view = ClusterView { projections: vec![torn, sound], ..view(Pending, 1, vec![ready]) };
    let deal = Deal { projection: "orders".into(), desired: DesiredState::Running, shares: vec![share(1, 0, 1)] };
    assert_eq!(plan(&view, &POLICY).actions, [Action::Activate { number: 5, deals: vec![deal] }]);
}

/// The names are used in the database, the metrics and the log.
#[test]
fn states_and_reasons_have_names() {
    for (state, name) in WorkerState::ALL.into_iter().zip(["pending", "ready", "running", "stopping", "stopped"]) {
        assert_eq!((state.as_str(), state.to_string().as_str()), (name, name));
        assert_eq!(WorkerState::parse(name), Some(state));
    }
    assert_eq!(WorkerState::parse("idle"), None);
    for (state, name) in [(DesiredState::Running, "running"), (DesiredState::Paused, "paused")] {
        assert_eq!((state.as_str(), DesiredState::parse(name)), (name, Some(state)));
    }
    assert_eq!(DesiredState::parse("pending"), None);
    for (fault, name) in [(Fault::Missing, "missing"), (Fault::Torn, "torn")] {
        assert_eq!((fault.as_str(), Fault::parse(name)), (name, Some(fault)));
    }
    assert_eq!([Cause::Started, Cause::Joined, Cause::Departed].map(Cause::as_str), ["started", "joined", "departed"]);
    assert_eq!(
        [Death::SessionLost, Death::Stale, Death::NotReady].map(Death::as_str),
        ["session lost", "heartbeats stopped", "not ready in time"]
    );
    assert_eq!(id(7).to_string(), "00000000-0000-0000-0000-000000000007");
}

#[test]
fn stance_follows_generation_and_worker_state() {
    use WorkerState as W;
    for (generation, state, number, expected) in [
        (Pending, W::Pending, 5, Stance::Prepare(5)),
        (Pending, W::Ready, 5, Stance::Ready(5)),
        (Active, W::Running, 5, Stance::Run(5)),
        (Active, W::Running, 4, Stance::Wait),
        (Active, W::Pending, 0, Stance::Wait),
        (Active, W::Stopping, 5, Stance::Wait),
        // Left over from a generation that was superseded before it became active.
        (Pending, W::Ready, 4, Stance::Wait),
    ] {
        let view = view(generation, 1, vec![worker(1, state, number, Some(0))]);
        assert_eq!(stance(&view.standing(id(1))), expected, "{generation:?} {state} {number}");
        assert_eq!(stance(&view.standing(id(2))), Stance::Rejoin);
    }
}

#[test]
fn a_moment_in_the_future_counts_from_when_it_was_first_seen() {
    let hour_ahead = at(3_700);
    let frozen = || WorkerView { last_heartbeat: hour_ahead, ..running(1, 0) };
    let cut_off = || WorkerView { session: Session::LostSince(hour_ahead), ..running(1, 0) };
    let late = || WorkerView { state: WorkerState::Pending, ..running(1, 0) };
    let pending = |worker| ClusterView {
        generation: Some(GenerationView { number: 5, state: Pending, total_partitions: 1, created_at: hour_ahead }),
        ..view(Pending, 1, vec![worker])
    };
    // What the observer sees, how long it waits after that, and why it then evicts the worker.
    for (seen, wait, death) in [
        (view(Active, 1, vec![frozen()]), 30, Death::Stale),
        (ClusterView { observing_since: hour_ahead, ..view(Active, 1, vec![frozen()]) }, 30, Death::Stale),
        (ClusterView { observing_since: hour_ahead, ..view(Active, 1, vec![cut_off()]) }, 1, Death::SessionLost),
        (pending(late()), 60, Death::NotReady),
    ] {
        let mut sightings = Sightings::default();
        let mut decide = |now| {
            let mut seen = ClusterView { now: at(now), ..seen.clone() };
            // Heartbeats that are not in the future stay fresh.
            for worker in seen.workers.iter_mut().filter(|worker| worker.last_heartbeat < hour_ahead) {
                worker.last_heartbeat = at(now);
            }
            plan(&sightings.settle(seen), &POLICY)
        };
        assert_eq!(decide(100).actions, [], "{death:?}");
        assert_eq!(decide(100 + wait - 1).actions, [], "{death:?}");
        assert_eq!(decide(99 + wait).recheck_after, Some(Duration::from_secs(1)), "{death:?}");
        assert_eq!(decide(100 + wait).actions[0], Action::Evict(id(1), death));
        // The clock is set back once more: the wait starts again.
        assert_eq!(decide(40).actions, [], "{death:?}");
        assert_eq!(decide(40 + wait).actions[0], Action::Evict(id(1), death));
    }
}

#[test]
fn a_heartbeat_after_one_in_the_future_counts_at_once() {
    let mut sightings = Sightings::default();
    let with_heartbeat = |now, heartbeat| ClusterView {
        now: at(now),
        ..view(Active, 1, vec![WorkerView { last_heartbeat: at(heartbeat), ..running(1, 0) }])
    };
    let mut settled = |now, heartbeat| sightings.settle(with_heartbeat(now, heartbeat)).workers[0].last_heartbeat;
    assert_eq!(settled(100, 3_700), at(100));
    assert_eq!(settled(120, 3_700), at(100));
    assert_eq!(settled(121, 121), at(121));
    // The first sighting was forgotten in between.
    assert_eq!(settled(125, 3_700), at(125));
    assert_eq!(settled(3_700, 3_700), at(3_700));
}
