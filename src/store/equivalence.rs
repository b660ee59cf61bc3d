//! Verifies that the database in memory, on which `plan` is model-checked, does what the SQL does.
//! After the same operations on both, in any order, both show the same view and the same
//! checkpoints, and both fences give the same answer.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use postgres::types::ToSql;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestCaseResult, TestError, TestRunner};

use super::coordination;
use super::fence::{self, Advanced, Checkpoint, EventMark, Progress, Statements};
use super::names::Names;
use super::outcome::Outcome;
use super::read_model::{Copy, Table};
use super::registration::{Known, Registration};
use super::session::{Session as Connection, Sessions};
use super::{execution, locks, rebuilds, rewinding, testing, view};
use crate::backoff::Mentions;
use crate::plan::model::commands::Attempt;
use crate::plan::model::database::{Clock, Database, Edit, Owner, POLICY, Row, worker_id};
use crate::plan::model::rebuilds::{Phase, Switched};
use crate::plan::model::sabotage::Sabotage;
use crate::plan::model::sets::{SETS, kind_of, live, other, set_name};
use crate::plan::{
    Action, Asked, Cause, ClusterView, Deal, Death, DesiredState, Errand, KeySet, Kind, ProjectionView, Rows,
    ServerTime, Session, WorkerId, WorkerState, WorkerView, plan,
};

use crate::scope::{Scope, StartAt};

const WORKERS: usize = 4;
const PROJECTIONS: usize = 2;
const SET: &str = "equal";

#[derive(Debug, Clone)]
enum Op {
    Register(usize),
    Hold(usize),
    LetGo(usize),
    /// The worker is ready for the generation that is this many before the newest.
    Ready(usize, i64),
    Stopping(usize),
    Left(usize),
    /// Applies everything that `plan` decides at such a moment.
    Plan(Clock),
    Evict(usize),
    /// Creates a generation with these members in this order, whether or not `plan` would choose
    /// them.
    Create(Vec<usize>),
    /// Activates the generation whether or not all are ready: the members that are ready get
    /// everything.
    Activate,
    /// What an operator wants of a projection.
    Desire(usize, DesiredState),
    /// An operator gives a command: for which version a rebuild is, and whether it keeps the former
    /// state.
    Command(usize, Asked, Option<i32>, bool),
    /// A worker takes a step of a command that it has to execute.
    Act(Finishing),
    /// This worker takes a step of the command that it last had to execute.
    ActLate(usize, Finishing),
    /// Distributes one projection among the running workers, whether or not `plan` would.
    Deal(usize),
    /// An operator changes its rows by hand.
    Edit(usize, Edit),
    /// Every worker reports that it is ready, and one of them plans.
    Settle,
    /// The owner of one of the rows loads what it owns of that projection.
    Load(prop::sample::Index),
    /// Moves one of the rows that were loaded, recently or long ago.
    Advance(prop::sample::Index, i64),
    Merge(prop::sample::Index, prop::sample::Index),
}

/// A step on the way to a switch. They are taken in any order.
#[derive(Debug, Clone, Copy)]
enum Finishing {
    CatchUp,
    Follow,
    PutOff,
    Switch,
}

fn op() -> impl Strategy<Value = Op> {
    let worker = || 0..WORKERS;
    let clock = (any::<[bool; 4]>(), prop_oneof![4 => Just(0_u8), 1 => 0..1_u8 << WORKERS]);
    let clock = clock.prop_map(|([grace, gathered, late, due], stale)| Clock { stale, grace, gathered, late, due });
    let members = Just((0..WORKERS).collect::<Vec<_>>()).prop_shuffle();
    prop_oneof![
        3 => worker().prop_map(Op::Register),
        2 => worker().prop_map(Op::Hold),
        1 => worker().prop_map(Op::LetGo),
        6 => (worker(), prop_oneof![5 => Just(0), 1 => 1..3_i64]).prop_map(|(worker, ago)| Op::Ready(worker, ago)),
        1 => worker().prop_map(Op::Stopping),
        1 => worker().prop_map(Op::Left),
        6 => clock.prop_map(Op::Plan),
        1 => worker().prop_map(Op::Evict),
        1 => (members, 1..=WORKERS).prop_map(|(members, many)| Op::Create(members[..many].to_vec())),
        1 => Just(Op::Activate),
        3 => (set(), prop_oneof![Just(DesiredState::Running), Just(DesiredState::Paused)])
            .prop_map(|(projection, desired)| Op::Desire(projection, desired)),
        6 => (set(), asked(), prop::option::weighted(0.3, 1..3_i32), any::<bool>())
            .prop_map(|(set, asked, version, keep_old)| Op::Command(set, asked, version, keep_old)),
        9 => finishing().prop_map(Op::Act),
        2 => (worker(), finishing()).prop_map(|(worker, step)| Op::ActLate(worker, step)),
        1 => set().prop_map(Op::Deal),
        2 => (live_set(), edit()).prop_map(|(projection, edit)| Op::Edit(projection, edit)),
        6 => Just(Op::Settle),
        6 => any::<prop::sample::Index>().prop_map(Op::Load),
        8 => (any::<prop::sample::Index>(), 1..3_i64).prop_map(|(row, by)| Op::Advance(row, by)),
        8 => (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(into, from)| Op::Merge(into, from)),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    prop_oneof![
        3 => Just(Asked::Pause),
        3 => Just(Asked::Resume),
        4 => Just(Asked::Rewind),
        1 => Just(Asked::Remove),
        4 => Just(Asked::Rebuild),
        3 => Just(Asked::Cancel),
        3 => Just(Asked::Revert),
        2 => Just(Asked::DropOld),
    ]
}

fn finishing() -> impl Strategy<Value = Finishing> {
    use Finishing::{CatchUp, Follow, PutOff, Switch};
    prop_oneof![2 => Just(CatchUp), 3 => Just(Follow), 1 => Just(PutOff), 4 => Just(Switch)]
}

fn live_set() -> impl Strategy<Value = usize> {
    (0..PROJECTIONS).prop_map(live)
}

/// Mostly the live checkpoints of a projection.
fn set() -> impl Strategy<Value = usize> {
    prop_oneof![5 => live_set(), 1 => 0..SETS]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        Just(Edit::Forget),
        Just(Edit::DropRows),
        (0..4_usize).prop_map(Edit::Disown),
        (0..4_usize, 0..WORKERS).prop_map(|(at, worker)| Edit::GiveTo(at, worker)),
    ]
}

/// A checkpoint without its token: projection, keys, position, generation, worker, lane.
type Shown = (String, Vec<(i32, i32)>, i64, i64, Option<WorkerId>, i32);

/// A row as it was loaded from both, and its owner at that time.
type Loaded = (Row, Checkpoint, Owner);

/// Both databases, and all rows that workers have ever loaded from both.
struct Both<'c> {
    session: &'c mut Connection,
    names: Names,
    statements: Statements,
    views: view::Statements,
    memory: Database,
    held: BTreeSet<usize>,
    workers: Vec<Program>,
    loaded: Vec<Loaded>,
    /// The number of each deal in SQL, by projection and its number in memory. No number is used
    /// twice.
    deals: BTreeMap<(Arc<str>, i64), i64>,
    /// The ids of the commands in SQL, in the order in which they were given, by their ids in
    /// memory.
    commands: BTreeMap<i64, i64>,
    /// What each worker last had to execute.
    errands: BTreeMap<usize, Attempt>,
    /// Which steps of commands were taken, and how often.
    taken: BTreeMap<String, usize>,
}

/// The projections that a worker knows, by bit, the version of its code, and the number of its
/// lanes.
type Program = (u8, i32, usize);

fn known(set: usize, version: i32, lanes: usize) -> Known {
    let (name, start_at) = (set_name(set).to_string(), StartAt::Beginning);
    Known { name, start_at, scope: Scope::all(), version, lanes, tables: vec![], fold: None }
}

fn registration(worker: usize, (bits, version, lanes): Program) -> Registration {
    let projections = (0..PROJECTIONS).filter(|projection| bits & 1 << projection != 0);
    Registration {
        worker: worker_id(worker),
        replica_set: SET.into(),
        host: "here".into(),
        pid: 1,
        projections: projections.map(|projection| known(live(projection), version, lanes)).collect(),
        build: None,
        sessions: Sessions::Own(worker_id(worker)),
        stale_worker_timeout: Duration::from_secs(30),
    }
}

/// A worker that knows every projection, and so can apply every action.
fn everybody() -> Registration {
    registration(0, (u8::MAX, 1, 1))
}

impl Both<'_> {
    fn apply(&mut self, actions: &[Action]) {
        let mut tx = coordination::lock(self.session, &self.names, SET).unwrap();
        for action in actions {
            let mut real = action.clone();
            if let Action::Command { id, .. } = &mut real {
                *id = self.commands[id];
            }
            coordination::apply(&mut tx, &self.names, &everybody(), &real, &mut Mentions::default()).unwrap();
            assert!(self.memory.apply(action));
        }
        tx.commit().unwrap();
    }

    fn says(&mut self, say: impl FnOnce(&mut postgres::Transaction<'_>, &Names) -> Result<(), postgres::Error>) {
        let mut tx = coordination::lock(self.session, &self.names, SET).unwrap();
        say(&mut tx, &self.names).unwrap();
        tx.commit().unwrap();
    }

    fn step(&mut self, op: &Op) -> TestCaseResult {
        let newest = self.memory.generation.map_or(0, |generation| generation.number);
        match op {
            Op::Register(worker) => {
                let program @ (knows, version, lanes) = self.workers[*worker];
                coordination::register(self.session, &self.names, &registration(*worker, program)).unwrap();
                // Memory has no deployments. `deploying` tests what a higher version asks for.
                let asked = self.names.sql("DELETE FROM {commands} WHERE requested_by LIKE 'worker %'");
                self.session.client().batch_execute(&asked).unwrap();
                self.memory.register(*worker, knows, version, lanes);
            }
            Op::Hold(worker) => {
                if self.held.insert(*worker) {
                    let class = locks::class(worker_id(*worker));
                    self.session.client().query("SELECT pg_advisory_lock_shared($1, 0)", &[&class]).unwrap();
                }
            }
            Op::LetGo(worker) => {
                if self.held.remove(worker) {
                    let class = locks::class(worker_id(*worker));
                    self.session.client().query("SELECT pg_advisory_unlock_shared($1, 0)", &[&class]).unwrap();
                }
            }
            Op::Ready(worker, ago) => {
                self.views.mark_ready(self.session.client(), worker_id(*worker), newest - ago).unwrap();
                self.memory.mark_ready(*worker, newest - ago);
            }
            Op::Stopping(worker) => {
                coordination::mark_stopping(self.session.client(), &self.names, worker_id(*worker)).unwrap();
                self.memory.mark_stopping(*worker);
            }
            Op::Left(worker) => {
                self.says(|tx, names| coordination::mark_left(tx, names, worker_id(*worker)));
                self.memory.mark_left(*worker);
            }
            Op::Plan(clock) => {
                let actions = plan(&self.memory.view(*clock, |worker| self.held.contains(&worker)), &POLICY).actions;
                self.apply(&actions);
            }
            Op::Evict(worker) => self.apply(&[Action::Evict(worker_id(*worker), Death::Stale)]),
            Op::Create(members) => {
                let is_there = |worker: &&usize| {
                    self.memory.workers[**worker].is_some_and(|row| row.state != WorkerState::Stopped)
                };
                let members: Vec<WorkerId> = members.iter().filter(is_there).map(|worker| worker_id(*worker)).collect();
                if !members.is_empty() {
                    self.apply(&[Action::CreateGeneration { number: newest + 1, cause: Cause::Joined, members }]);
                }
            }
            Op::Activate => {
                if newest > 0 {
                    let view = self.memory.view(Clock::default(), |_| true);
                    let ready = members(&view, newest, WorkerState::Ready);
                    let usable = view.projections.iter().filter(|projection| is_usable(projection));
                    let deals = usable.map(|projection| Deal::of(projection, &ready)).collect();
                    self.apply(&[Action::Activate { number: newest, deals }]);
                }
            }
            Op::Desire(projection, desired) => {
                let sql = self.names.sql("UPDATE {projections} SET desired_state = $1 WHERE name = $2");
                let name = &**set_name(*projection);
                self.session.client().execute(&sql, &[&desired.as_str(), &name]).unwrap();
                self.memory.desire(*projection, *desired);
            }
            Op::Command(set, asked, version, keep_old) => self.command(*set, *asked, *version, *keep_old),
            Op::Act(step) => self.act(*step)?,
            Op::ActLate(worker, step) => self.act_late(*worker, *step)?,
            Op::Deal(projection) => {
                let view = self.memory.view(Clock::default(), |_| true);
                let running = members(&view, newest, WorkerState::Running);
                let name = set_name(*projection);
                let is_meant = |projection: &&ProjectionView| projection.name == *name && is_usable(projection);
                if let Some(projection) = view.projections.iter().find(is_meant) {
                    self.apply(&[Action::Deal { generation: newest, deal: Deal::of(projection, &running) }]);
                }
            }
            Op::Edit(projection, edit) => {
                if self.memory.edit(*projection, *edit) {
                    self.edit(set_name(*projection), *edit);
                }
            }
            Op::Settle => {
                for worker in 0..WORKERS {
                    self.step(&Op::Ready(worker, 0))?;
                }
                self.step(&Op::Plan(Clock::default()))?;
            }
            Op::Load(which) => {
                let row = (!self.memory.rows.is_empty()).then(|| which.get(&self.memory.rows));
                if let Some((row, worker)) = row.and_then(|row| Some((row, row.worker?))) {
                    self.load(row.projection, Owner { worker, generation: row.generation }, row.lane)?;
                }
            }
            Op::Advance(which, by) => {
                if let Some(row) = pick(&self.loaded, *which) {
                    self.advance(&row, *by)?;
                }
            }
            Op::Merge(into, from) => self.merge_some(*into, *from)?,
        }
        Ok(())
    }

    fn merge_some(&mut self, into: prop::sample::Index, from: prop::sample::Index) -> TestCaseResult {
        let Some(into) = pick(&self.loaded, into) else { return Ok(()) };
        // A runner merges rows at one position that it loaded together; each of them may
        // have moved since.
        let is_partner = |(row, stored, _): &&Loaded| {
            (row.projection, row.generation, row.position, row.lane)
                == (into.0.projection, into.0.generation, into.0.position, into.0.lane)
                && stored.token != into.1.token
        };
        let partners: Vec<_> = self.loaded.iter().filter(is_partner).cloned().collect();
        if let Some(from) = pick(&partners, from) {
            self.merge(&into, &from)?;
        }
        Ok(())
    }

    fn command(&mut self, set: usize, asked: Asked, version: Option<i32>, keep_old: bool) {
        let is_for_all = matches!(asked, Asked::Pause | Asked::Resume);
        let is_taken = match kind_of(set) {
            Kind::Live => true,
            Kind::Rebuild => is_for_all,
            Kind::Old => false,
        };
        if self.memory.projections[set].is_none() || !is_taken {
            return;
        }
        let version = version.filter(|_| asked == Asked::Rebuild);
        self.memory.command(set, asked, version, keep_old);
        let arguments = match (asked, version) {
            (Asked::Rewind, _) => r#"{"to_beginning": true}"#.to_owned(),
            (Asked::Rebuild, None) => format!(r#"{{"keep_old": {keep_old}}}"#),
            (Asked::Rebuild, Some(version)) => format!(r#"{{"keep_old": {keep_old}, "version": {version}}}"#),
            _ => "{}".to_owned(),
        };
        let sql = self.names.sql("SELECT {command}($1, $2, $3::text::jsonb)");
        let values: [&(dyn ToSql + Sync); 3] = [&&**set_name(set), &asked.as_str(), &arguments];
        let id = self.session.client().query_one(&sql, &values).unwrap().get(0);
        self.commands.insert(self.memory.commands.last().unwrap().id, id);
    }

    fn act(&mut self, step: Finishing) -> TestCaseResult {
        let view = self.memory.view(Clock::default(), |_| true);
        let errands = |worker| view.standing(worker_id(worker)).errand.map(|errand| (worker, Attempt::at(&errand)));
        // A worker may execute it that has left meanwhile.
        let current: Vec<_> = (0..WORKERS).filter_map(errands).collect();
        self.errands.extend(current.iter().copied());
        match current.first() {
            Some((worker, _)) => self.act_late(*worker, step),
            None => Ok(()),
        }
    }

    fn act_late(&mut self, worker: usize, step: Finishing) -> TestCaseResult {
        let Some(attempt) = self.errands.get(&worker).copied() else { return Ok(()) };
        let is_meant = |asked| asked == attempt.asked;
        let command = self.memory.commands.iter().find(|command| command.id == attempt.command);
        if !command.is_some_and(|command| is_meant(command.asked) && command.projection == attempt.projection) {
            return Ok(());
        }
        let errand = Errand {
            command: self.commands[&attempt.command],
            asked: attempt.asked,
            is_finishing: attempt.is_finishing,
            attempt: attempt.number,
            projection: set_name(attempt.projection).clone(),
        };
        let (of_sql, of_memory) = match (attempt.asked, attempt.is_finishing) {
            (Asked::Rebuild, true) => self.finish(worker, &errand, attempt, step),
            (Asked::Rebuild, false) => {
                let version = self.workers[worker].1;
                (self.prepare(worker, &errand, version), self.memory.prepare(worker_id(worker), attempt, version))
            }
            (Asked::Rewind, _) => {
                let mut tx = self.session.transaction().unwrap();
                let cleared = rewinding::rewind(&mut tx, &self.names, &errand, worker_id(worker), 0, 0.0).unwrap();
                tx.commit().unwrap();
                (cleared, self.memory.clear(worker_id(worker), attempt))
            }
            _ => self.end_rebuild(worker, &errand, attempt),
        };
        prop_assert_eq!(of_sql, of_memory, "{:?} {:?}", attempt, step);
        if of_sql {
            let what = if attempt.is_finishing { format!("{step:?}") } else { format!("{:?}", attempt.asked) };
            *self.taken.entry(what).or_default() += 1;
        }
        Ok(())
    }

    /// Begins a rebuild, as if the copies had been created.
    fn prepare(&mut self, worker: usize, errand: &Errand, version: i32) -> bool {
        let mut tx = self.session.transaction().unwrap();
        let asked = rebuilds::asked(&mut tx, &self.names, errand.command).unwrap().unwrap();
        let table = Table { oid: 1, schema: "public".into(), name: "made_up".into() };
        let begun = rebuilds::begin(
            &mut tx,
            &self.names,
            errand,
            worker_id(worker),
            &Known { name: errand.projection.to_string(), ..known(0, version, 1) },
            None,
            asked,
            &[Copy { table, oid: 2 }],
            ("made_up", 0, 0),
        );
        tx.commit().unwrap();
        begun.unwrap()
    }

    /// Takes a step on the way to a switch. Returns whether SQL and memory have taken it.
    fn finish(&mut self, worker: usize, errand: &Errand, attempt: Attempt, step: Finishing) -> (bool, bool) {
        let (names, id) = (&self.names, worker_id(worker));
        let mut tx = self.session.transaction().unwrap();
        let both = match step {
            Finishing::CatchUp => {
                (rebuilds::catch_up(&mut tx, names, errand, id).unwrap(), self.memory.catch_up(id, attempt))
            }
            Finishing::Follow => {
                (rebuilds::follow(&mut tx, names, errand, id).unwrap(), self.memory.follow(id, attempt))
            }
            Finishing::PutOff => {
                let put_off = rebuilds::put_off(&mut tx, names, errand, id, "a reason", 1e6).unwrap();
                (put_off, self.memory.put_off(id, attempt))
            }
            Finishing::Switch => {
                let current = rebuilds::current(&mut tx, names, &errand.projection).unwrap();
                let kept = current.is_some_and(|current| current.keep_old).then_some("kept");
                // The tokens are those of a moment when both were level.
                let is_switched = rebuilds::hold(&mut tx, names, errand, id).unwrap()
                    && matches!(
                        rebuilds::switch(&mut tx, names, errand, i64::MAX, kept).unwrap(),
                        rebuilds::Switched::Done(_)
                    );
                if !is_switched {
                    drop(tx);
                    return (false, matches!(self.memory.switch(id, attempt), Switched::Done { .. }));
                }
                (true, matches!(self.memory.switch(id, attempt), Switched::Done { .. }))
            }
        };
        tx.commit().unwrap();
        both
    }

    /// Cancels, reverts, or drops what is kept, or refuses that. Returns whether SQL and memory
    /// have done so.
    fn end_rebuild(&mut self, worker: usize, errand: &Errand, attempt: Attempt) -> (bool, bool) {
        let (names, id, live) = (&self.names, worker_id(worker), attempt.projection);
        let mut tx = self.session.transaction().unwrap();
        let found = match attempt.asked {
            Asked::Cancel => rebuilds::current(&mut tx, names, &errand.projection).unwrap(),
            _ => rebuilds::kept(&mut tx, names, &errand.projection).unwrap(),
        };
        let Some(rebuild) = found else {
            let refused = Outcome::Refused("it is not there".to_owned());
            let concluded = execution::conclude(&mut tx, names, errand, id, &refused).unwrap();
            tx.commit().unwrap();
            let is_there = match attempt.asked {
                Asked::Cancel => self.memory.current(live),
                _ => self.memory.kept(live),
            };
            assert_eq!(is_there, None);
            return (concluded, self.memory.refuse(id, attempt));
        };
        let (ended, of_memory) = match attempt.asked {
            Asked::Cancel => (rebuilds::cancel(&mut tx, names, errand, id, &rebuild), self.memory.cancel(id, attempt)),
            Asked::Revert => {
                let reverted = rebuilds::revert(&mut tx, names, errand, id, &rebuild, "elsewhere");
                (reverted, self.memory.revert(id, attempt))
            }
            _ => (rebuilds::drop_old(&mut tx, names, errand, id, &rebuild), self.memory.drop_old(id, attempt)),
        };
        // Rows that were changed by hand are an error.
        let is_done = ended.is_ok_and(|outcome| outcome.is_some());
        if is_done {
            tx.commit().unwrap();
        }
        (is_done, of_memory)
    }

    /// Loads the first row of this set.
    fn load_of(&mut self, set: usize) -> Result<Loaded, TestCaseError> {
        self.loaded.clear();
        let row = self.memory.rows.iter().find(|row| row.projection == set && row.worker.is_some()).cloned();
        let row = row.unwrap();
        let owner = Owner { worker: row.worker.unwrap(), generation: row.generation };
        self.load(set, owner, row.lane)?;
        Ok(self.loaded[0].clone())
    }

    /// Moves the row that was loaded last.
    fn advance_last(&mut self) -> TestCaseResult {
        let last = self.loaded.last().cloned().unwrap();
        self.advance(&last, 1)?;
        self.compare()
    }

    fn compare_rebuilds(&mut self) -> TestCaseResult {
        let sql = self.names.sql(
            "SELECT id, projection, state, keep_old, coalesce(retry_at > clock_timestamp(), false) FROM {rebuilds} ORDER BY id",
        );
        let stored = self.session.client().query(&sql, &[]).unwrap();
        let stored: Vec<(i64, String, String, bool, bool)> =
            stored.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))).collect();
        let memory = self.memory.rebuilds.iter().map(|rebuild| {
            let state = match rebuild.phase {
                Phase::Loading => "loading",
                Phase::CatchingUp => "catching_up",
                Phase::Following => "following",
                Phase::Old => "old",
            };
            let name = set_name(rebuild.projection).to_string();
            (self.commands[&rebuild.id], name, state.to_owned(), rebuild.keep_old, rebuild.is_put_off)
        });
        let mut memory: Vec<_> = memory.collect();
        memory.sort();
        prop_assert_eq!(stored, memory);
        let pending = self.names.sql("SELECT count(*) FROM {commands} WHERE applied_at IS NULL");
        let pending: i64 = self.session.client().query_one(&pending, &[]).unwrap().get(0);
        prop_assert_eq!(usize::try_from(pending), Ok(self.memory.commands.len()));
        Ok(())
    }

    fn edit(&mut self, name: &str, edit: Edit) {
        let (worker, at) = match edit {
            Edit::Forget | Edit::DropRows => {
                let and_claim =
                    if edit == Edit::Forget { "DELETE FROM {projections} WHERE name = '{name}'" } else { "" };
                let sql = format!("DELETE FROM {{checkpoints}} WHERE projection = '{{name}}'; {and_claim}");
                self.session.client().batch_execute(&self.names.sql_with(&sql, &[("name", &name)])).unwrap();
                return;
            }
            Edit::Disown(at) => (None, at),
            Edit::GiveTo(at, worker) => (Some(worker_id(worker).0), at),
        };
        let sql = self.names.sql(
            "UPDATE {checkpoints} SET worker_id = $1 WHERE token =
             (SELECT token FROM {checkpoints} WHERE projection = $2 ORDER BY lower(keys), token OFFSET $3 LIMIT 1)",
        );
        let at = i64::try_from(at).unwrap();
        assert_eq!(self.session.client().execute(&sql, &[&worker, &name, &at]).unwrap(), 1);
    }

    fn advance(&mut self, (row, stored, owner): &Loaded, by: i64) -> TestCaseResult {
        let to = row.position + by;
        let moved = if to % 2 == 0 {
            self.statements.note(self.session.client(), stored, real(*owner), to).unwrap()
        } else {
            let mut tx = self.session.transaction().unwrap();
            let mark = fence::mark(&mut tx, Sessions::Shared, Duration::from_secs(30), None).unwrap();
            let last = EventMark { position: to, id: uuid::Uuid::nil() };
            let advanced = self
                .statements
                .advance(&mut tx, stored, real(*owner), Progress { to, last, handled: 1 }, &mark)
                .unwrap();
            tx.commit().unwrap();
            prop_assert!(advanced != Advanced::OtherTransaction);
            advanced == Advanced::Moved
        };
        prop_assert_eq!(moved, self.memory.advance(row, *owner, to), "the fences differ");
        self.load(row.projection, *owner, row.lane)
    }

    fn merge(&mut self, into: &Loaded, from: &Loaded) -> TestCaseResult {
        let owner = into.2;
        let merged = fence::merge(self.session.client(), &self.names, &into.1, &from.1, real(owner)).unwrap();
        prop_assert_eq!(merged, self.memory.merge(&into.0, &from.0, owner), "the fences differ");
        self.load(into.0.projection, owner, into.0.lane)
    }

    fn load(&mut self, number: usize, owner: Owner, lane: usize) -> TestCaseResult {
        let mut memory = self.memory.owned(number, owner, lane);
        let name = set_name(number);
        let mut stored = self.statements.owned(self.session.client(), name, real(owner), lane).unwrap().rows;
        memory.sort_by_key(|row| row.keys.ranges().to_vec());
        stored.sort_by_key(|row| row.keys.ranges().to_vec());
        prop_assert_eq!(memory.len(), stored.len(), "owned rows differ");
        for (row, stored) in memory.into_iter().zip(stored) {
            prop_assert_eq!((&row.keys, row.position), (&stored.keys, stored.position));
            self.loaded.push((row, stored, owner));
        }
        Ok(())
    }

    fn compare(&mut self) -> TestCaseResult {
        let mut real = self.views.view(self.session.client(), SET, true).unwrap();
        for worker in (0..WORKERS).map(worker_id) {
            let standing = self.views.standing(self.session.client(), SET, worker).unwrap();
            prop_assert_eq!(standing, real.standing(worker));
        }
        let memory = self.memory.view(Clock::default(), |worker| self.held.contains(&worker));
        for (real, memory) in real.projections.iter_mut().zip(&memory.projections) {
            let number = *self.deals.entry((memory.name.clone(), memory.deal)).or_insert(real.deal);
            prop_assert_eq!(real.deal, number);
            real.deal = memory.deal;
        }
        prop_assert_eq!(real.commands.len(), memory.commands.len());
        for (real, memory) in real.commands.iter_mut().zip(&memory.commands) {
            prop_assert_eq!(real.id, self.commands[&memory.id]);
            real.id = memory.id;
        }
        prop_assert_eq!(
            self.deals.values().collect::<BTreeSet<_>>().len(),
            self.deals.len(),
            "a number was used twice"
        );
        prop_assert_eq!(without_times(real), without_times(memory));
        self.compare_rebuilds()?;
        let sql = self.names.sql("SELECT projection, keys, position, generation, worker_id, lane FROM {checkpoints}");
        let rows = self.session.client().query(&sql, &[]).unwrap();
        let stored = rows.iter().map(|row| {
            let keys: KeySet = row.get(1);
            (
                row.get(0),
                keys.ranges().to_vec(),
                row.get(2),
                row.get(3),
                row.get::<_, Option<uuid::Uuid>>(4).map(WorkerId),
                row.get(5),
            )
        });
        let memory = self.memory.rows.iter().map(|row| {
            let keys = row.keys.ranges().to_vec();
            let (name, worker) = (set_name(row.projection).to_string(), row.worker.map(worker_id));
            (name, keys, row.position, row.generation, worker, i32::try_from(row.lane).unwrap())
        });
        let sorted = |rows: &mut dyn Iterator<Item = Shown>| {
            let mut rows: Vec<_> = rows.collect();
            rows.sort();
            rows
        };
        prop_assert_eq!(sorted(&mut { stored }), sorted(&mut { memory }));
        Ok(())
    }
}

/// Mostly one of the last few, so that not all of them are fenced.
fn pick<T: Clone>(all: &[T], which: prop::sample::Index) -> Option<T> {
    let recent = all.len().saturating_sub(6);
    all.get(recent..).filter(|some| !some.is_empty()).map(|some| which.get(some).clone())
}

/// Whether the SQL would deal the projection.
fn is_usable(projection: &ProjectionView) -> bool {
    !matches!(projection.rows, Rows::Unusable(_))
}

fn members(view: &ClusterView, generation: i64, state: WorkerState) -> Vec<&WorkerView> {
    view.workers.iter().filter(|worker| (worker.generation, worker.state) == (generation, state)).collect()
}

fn real(owner: Owner) -> fence::Owner {
    fence::Owner { worker: worker_id(owner.worker), generation: owner.generation }
}

fn without_times(mut view: ClusterView) -> ClusterView {
    let never = ServerTime::default();
    view.workers.sort_by_key(|worker| worker.id);
    for worker in &mut view.workers {
        (worker.registered_at, worker.last_heartbeat) = (never, never);
        if let Session::LostSince(at) = &mut worker.session {
            *at = never;
        }
    }
    if let Some(generation) = &mut view.generation {
        generation.created_at = never;
    }
    ClusterView { now: never, observing_since: never, ..view }
}

impl<'c> Both<'c> {
    fn new(session: &'c mut Connection, workers: Vec<Program>) -> Self {
        let names = Names::default();
        let client = session.client();
        let truncate = names
            .sql("SELECT pg_advisory_unlock_all(); TRUNCATE {replica_sets} CASCADE; TRUNCATE {commands}, {rebuilds}");
        client.batch_execute(&truncate).unwrap();
        let statements = Statements::prepare(client, &names).unwrap();
        let memory = Database::new(WORKERS, Sabotage::None);
        let views = view::Statements::prepare(client, &names).unwrap();
        Self {
            session,
            names,
            statements,
            views,
            memory,
            held: BTreeSet::new(),
            workers,
            loaded: Vec::new(),
            deals: BTreeMap::new(),
            commands: BTreeMap::new(),
            errands: BTreeMap::new(),
            taken: BTreeMap::new(),
        }
    }

    fn run(&mut self, ops: impl IntoIterator<Item = Op>) -> TestCaseResult {
        for op in ops {
            self.step(&op)?;
            self.compare()?;
        }
        Ok(())
    }
}

fn session() -> Connection {
    let mut client = testing::connect();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    // Checkpoints move although there are no events.
    client.batch_execute("SELECT setval('events_global_position_seq', 1000000)").unwrap();
    Connection::of(client, Sessions::Shared).unwrap()
}

#[test]
fn memory_and_sql_agree() {
    let mut active = 0;
    let config = ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() };
    let cell = RefCell::new((session(), &mut active, BTreeMap::<String, usize>::new()));
    let workers = (1..1_u8 << PROJECTIONS, prop_oneof![3 => Just(1), 1 => Just(2)], 1..4_usize);
    let workers = prop::collection::vec(workers, WORKERS);
    let cases = (workers, 0..4_usize, prop::collection::vec(op(), 10..50));
    let outcome = TestRunner::new(config).run(&cases, |(workers, begun, ops)| {
        let (session, active, taken) = &mut *cell.borrow_mut();
        let mut both = Both::new(session, workers);
        let everybody = (0..WORKERS).flat_map(|worker| [Op::Register(worker), Op::Hold(worker)]);
        // Most operations need an active generation.
        let first_generation = [Op::Plan(Clock::default()), Op::Settle];
        both.run(everybody.chain(first_generation).chain(begun_rebuild(begun)).chain(ops))?;
        **active += usize::from(both.loaded.iter().any(|(row, _, _)| row.position > 0));
        for (what, times) in both.taken {
            *taken.entry(what).or_default() += times;
        }
        Ok(())
    });
    match outcome {
        Ok(()) => println!("steps of commands: {:?}", cell.borrow().2),
        Err(TestError::Fail(reason, case)) => panic!("{reason}\nminimal case: {case:#?}"),
        Err(abort) => panic!("{abort}"),
    }
    drop(cell);
    println!("positions moved in {active} cases");
    assert!(active > 10, "hardly anything happens: {active}");
}

/// A rebuild that has come so far.
fn begun_rebuild(steps: usize) -> impl Iterator<Item = Op> {
    let act = |step| [Op::Act(step), Op::Plan(Clock::default())];
    let asked = [Op::Command(live(0), Asked::Rebuild, None, true), Op::Plan(Clock::default())];
    let steps = match steps {
        0 => vec![],
        1 => vec![Finishing::CatchUp],
        2 => vec![Finishing::CatchUp, Finishing::CatchUp, Finishing::Follow],
        _ => vec![Finishing::CatchUp, Finishing::CatchUp, Finishing::Switch],
    };
    let is_asked = !steps.is_empty();
    asked.into_iter().filter(move |_| is_asked).chain(steps.into_iter().flat_map(act))
}

/// The random search seldom comes so far.
#[test]
fn memory_and_sql_agree_through_a_rebuild() -> TestCaseResult {
    use Finishing::{CatchUp, Follow, PutOff, Switch};
    let mut session = session();
    let set = live(0);
    for keep_old in [true, false] {
        // Worker 1 has another version.
        let programs = vec![(1, 1, 2), (1, 2, 1), (1, 1, 1), (1, 1, 1)];
        let mut both = Both::new(&mut session, programs);
        let calm = || Op::Plan(Clock::default());
        let due = || Op::Plan(Clock { due: true, ..Clock::default() });
        let ask = |asked| Op::Command(set, asked, None, keep_old);
        let act = || Op::Act(Switch);
        let joined = (0..3).flat_map(|worker| [Op::Register(worker), Op::Hold(worker)]);
        both.run(joined.chain([calm(), Op::Settle, ask(Asked::Rebuild), calm(), act(), calm(), calm()]))?;
        both.run([CatchUp, Follow, PutOff].map(Op::Act).into_iter().chain([calm(), due()]))?;
        // The same worker begins again, but does not know it yet.
        both.run(
            [CatchUp, Follow, PutOff, Switch].map(|step| Op::ActLate(0, step)).into_iter().chain([Op::Act(CatchUp)]),
        )?;
        // Another worker takes over, and the first one comes back too late.
        both.run([Op::Evict(0), calm(), Op::Settle, calm(), calm()])?;
        both.run([CatchUp, Follow, PutOff, Switch].map(|step| Op::ActLate(0, step)))?;
        let stale = both.load_of(set)?;
        both.run([CatchUp, Follow].map(Op::Act))?;
        both.advance(&stale, 1)?;
        both.load_of(set)?;
        both.advance_last()?;
        both.run([act()])?;
        assert_eq!(both.taken.get("Switch"), None, "the rebuild is behind");
        both.load_of(other(set, Kind::Rebuild))?;
        both.advance_last()?;
        // A command for the rebuild is refused when its name vanishes.
        both.run([Op::Command(other(set, Kind::Rebuild), Asked::Pause, None, false)])?;
        let stale = [both.load_of(set)?, both.load_of(other(set, Kind::Rebuild))?];
        both.run([act()])?;
        for row in stale {
            both.advance(&row, 1)?;
        }
        both.run([calm()])?;
        assert_eq!(both.taken.get("Switch"), Some(&1));
        assert_eq!(both.memory.commands, []);
        if keep_old {
            both.run([ask(Asked::Rebuild), calm(), calm(), ask(Asked::Revert), calm(), act(), calm(), calm()])?;
            both.run([ask(Asked::DropOld), calm()])?;
            both.run([Op::Command(other(set, Kind::Old), Asked::Pause, None, false), act(), calm()])?;
            assert_eq!((both.taken.get("Revert"), both.taken.get("DropOld")), (Some(&1), Some(&1)));
            assert_eq!(both.memory.commands, []);
        }
        // The only worker with the version leaves while the live rows follow.
        both.run([ask(Asked::Rebuild), calm(), act(), calm(), calm(), Op::Act(CatchUp), Op::Act(Follow)])?;
        both.run([Op::Evict(2), calm(), Op::Settle, calm(), calm(), ask(Asked::Cancel), calm(), act(), calm()])?;
        assert_eq!(both.taken.get("Cancel"), Some(&1));
        assert_eq!((&both.memory.commands[..], &both.memory.rebuilds[..]), (&[][..], &[][..]));
    }
    Ok(())
}

/// A rare case that the random search does not find: of two rows that could be merged, one moves
/// first.
#[test]
fn a_merge_with_a_row_that_has_moved_changes_nothing() -> TestCaseResult {
    let mut session = session();
    let mut both = Both::new(&mut session, vec![(1, 1, 1); WORKERS]);
    let calm = || Op::Plan(Clock::default());
    both.run([Op::Register(0), Op::Register(1), Op::Hold(0), Op::Hold(1), calm(), Op::Settle])?;
    both.load(0, Owner { worker: 0, generation: 1 }, 0)?;
    both.advance(&both.loaded[0].clone(), 1)?;
    both.run([Op::Left(1), calm(), Op::Settle])?;
    both.loaded.clear();
    both.load(0, Owner { worker: 0, generation: 2 }, 0)?;
    let behind = both.loaded.iter().find(|(row, _, _)| row.position == 0).cloned().unwrap();
    both.loaded.clear();
    both.advance(&behind, 1)?;
    let [one, other] = <[Loaded; 2]>::try_from(both.loaded.clone()).unwrap();
    both.advance(&one, 1)?;
    for (into, from) in [(&one, &other), (&other, &one)] {
        both.merge(into, from)?;
        both.compare()?;
    }
    assert_eq!(both.memory.rows.len(), 2);
    both.loaded.clear();
    both.advance(&other, 1)?;
    let [one, other] = <[Loaded; 2]>::try_from(both.loaded.clone()).unwrap();
    both.merge(&one, &other)?;
    assert_eq!(both.memory.rows.len(), 1);
    both.compare()
}
