//! Model checking: the real [`plan`] and [`stance`](super::stance), over a database in memory.
//! Workers join, leave, crash, lose their connections, are declared dead while they live, and act
//! late on what they saw, in every order.
//!
//! The model has no clocks: where a clock decides, the search tries both outcomes. The search is
//! complete within its [`Bounds`].
//!
//! The model does not show that the SQL does what [`database`] does: `store::equivalence` shows it.
//! It also does not show how row locks and isolation levels affect two statements that run at the
//! same time: in the model, each transaction happens at one moment.

mod choices;
pub(crate) mod commands;
pub(crate) mod database;
mod errands;
mod health;
pub(crate) mod rebuilds;
mod renumber;
mod runners;
pub(crate) mod sabotage;
pub(crate) mod sets;
mod world;

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::{Asked, DesiredState, GenerationState, KeySet, WorkerState};
use crate::plan;
use database::Clock;
use errands::Stage;
use sabotage::{Fenced, Sabotage};
use world::{Bounds, Damage, Life, Meanwhile, Runner, Step, Told, World};

/// The number of rounds without faults within which a world must recover.
const ROUNDS: usize = 16;

struct Cluster {
    bounds: Bounds,
    sabotage: Sabotage,
    /// Hashes of worlds that are known to recover.
    recovers: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl Cluster {
    fn new(bounds: Bounds, sabotage: Sabotage) -> Self {
        Self { bounds, sabotage, recovers: Mutex::default(), hasher: RandomState::new() }
    }

    fn recovers(&self, world: &World) -> bool {
        let mut world = World { faults: 0, ..world.clone() };
        let mut passed = Vec::new();
        let is_well = loop {
            let hash = self.hasher.hash_one(&world);
            if self.recovers.lock().unwrap().contains(&hash) {
                break true;
            }
            passed.push(hash);
            if world.is_well(&self.bounds) {
                break true;
            }
            if passed.len() > ROUNDS {
                break false;
            }
            world.fair_round(&self.bounds);
        };
        if is_well {
            self.recovers.lock().unwrap().extend(passed);
        }
        is_well
    }
}

impl Model for Cluster {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.bounds, self.sabotage)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.steps(steps, &self.bounds);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let faults = world.faults.checked_sub(world.cost(step))?;
        let wishes = world.wishes - u8::from(matches!(step, Step::Wish(_)));
        let edits = world.edits - u8::from(matches!(step, Step::Edit(..)));
        let commands = world.commands - u8::from(matches!(step, Step::Command(..)));
        world.after(step, &self.bounds).map(|next| World { faults, wishes, edits, commands, ..next })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("no two workers can commit for one key", |_, world: &World| {
                let batches = world.could_commit();
                batches.iter().all(|(row, owner)| {
                    batches.iter().all(|(other, by)| {
                        owner.worker == by.worker
                            || row.projection != other.projection
                            || row.keys.intersection(&other.keys).is_empty()
                    })
                })
            }),
            Property::always("checkpoints partition the key space", |_, world: &World| world.rows_partition_the_keys()),
            Property::always("each event is handled once, in order", |_, world: &World| {
                world.damage.is_none_or(Damage::is_of_readers)
            }),
            Property::always("no reader sees the read model go back", |_, world: &World| {
                !world.damage.is_some_and(Damage::is_of_readers)
            }),
            Property::always("positions are where handling ended", |cluster: &Self, world| {
                world.rows_agree_with_the_log(&cluster.bounds)
            }),
            Property::always("a batch begun before a deal cannot commit after it", |_, world: &World| {
                let made = |row: &database::Row| world.database.rows.iter().find(|now| now.id == row.id);
                world.could_commit().iter().all(|(row, _)| made(row).is_none_or(|now| now.deal == row.deal))
            }),
            Property::always("a rebuild is there while its command goes on", |_, world: &World| {
                world.rebuilds_are_whole()
            }),
            Property::always("it gets well by itself", |cluster: &Self, world| cluster.recovers(world)),
            Property::sometimes("all workers run", |_, world: &World| {
                let total = world.processes.len();
                world.database.generation.is_some_and(|g| g.state == GenerationState::Active && g.total == total)
            }),
        ];
        if self.bounds.faults + self.bounds.edits > 0 {
            properties.push(Property::sometimes("a batch of a former owner is still under way", |_, world: &World| {
                let able = world.could_commit();
                all_batches(world).any(|(worker, keys)| {
                    able.iter().any(|(row, by)| by.worker != worker && !row.keys.intersection(keys).is_empty())
                })
            }));
        }
        if self.bounds.faults > 0 {
            properties.push(Property::sometimes("one who lives has been evicted", |_, world: &World| {
                let mut all = world.processes.iter().zip(&world.database.workers);
                all.any(|(process, row)| {
                    process.life == Life::Up && row.is_some_and(|row| row.state == WorkerState::Stopped)
                })
            }));
        }
        if self.bounds.edits > 0 {
            properties.push(Property::sometimes("a projection begins again", |_, world: &World| {
                world.edits == 0 && world.database.projections[0].as_ref().is_some_and(|row| row.dealt_as.is_none())
            }));
        }
        // With two versions, one worker has all keys of a set.
        if self.bounds.last > 0 && self.bounds.faults + self.bounds.edits > 0 && self.bounds.wanted.is_none() {
            properties.extend([
                Property::sometimes("two rows are about to be merged", |_, world: &World| {
                    running_rows(world).any(|rows| rows.len() > 1 && rows[0].position == rows[1].position)
                }),
                Property::sometimes("one row catches up with another", |_, world: &World| {
                    running_rows(world).any(|rows| rows.len() > 1 && rows[0].position < rows[1].position)
                }),
            ]);
        }
        if self.bounds.wishes > 0 {
            properties.extend([
                Property::sometimes("a projection is paused within a generation", |_, world: &World| {
                    let is_paused = |row: &database::Projection| row.dealt == DesiredState::Paused;
                    world.database.projections.iter().flatten().any(is_paused)
                        && world.database.generation.is_some_and(|now| now.state == GenerationState::Active)
                }),
                Property::sometimes("a runner has to hear of a deal", |_, world: &World| {
                    told(world).any(|told| {
                        world.database.projections[told.set].as_ref().is_some_and(|row| row.deal != told.deal)
                            && world.database.generation.is_some_and(|now| now.number == told.generation)
                    })
                }),
            ]);
        }
        properties.extend(of_commands(&self.bounds));
        properties.extend(of_rebuilds(&self.bounds));
        if self.bounds.last > 0 && self.bounds.faults > 0 {
            properties.push(Property::sometimes(
                "a commit is under way that its worker has given up on",
                |_, world: &World| {
                    world.could_commit().iter().any(|(row, _)| running_rows(world).any(|rows| rows.contains(row)))
                        && !world.adrift.is_empty()
                },
            ));
        }
        if usize::from(self.bounds.faults) >= self.bounds.knows.len() {
            properties.push(Property::sometimes("nobody is left", |_, world: &World| {
                world.processes.iter().all(|process| process.life == Life::Gone)
            }));
        }
        properties
    }
}

/// What must happen sometimes if an operator gives commands.
fn of_commands(bounds: &Bounds) -> Vec<Property<Cluster>> {
    if bounds.commands == 0 || bounds.has_rebuilds() {
        return Vec::new();
    }
    let mut properties = vec![
        Property::sometimes("a read model is being cleared", |_, world: &World| {
            world.processes.iter().any(|process| process.errand.is_some())
        }),
        Property::sometimes("a read model has been cleared", |_, world: &World| {
            world.database.commands.iter().any(|command| command.step == plan::Step::Executed)
        }),
    ];
    if bounds.faults > 0 {
        properties.push(Property::sometimes("two workers clear one read model", |_, world: &World| {
            world.processes.iter().filter(|process| process.errand.is_some()).count() > 1
        }));
    }
    properties
}

/// What must happen sometimes if an operator rebuilds.
fn of_rebuilds(bounds: &Bounds) -> Vec<Property<Cluster>> {
    if !bounds.has_rebuilds() {
        return Vec::new();
    }
    let mut properties = vec![Property::sometimes("a switch was put off", |_, world: &World| {
        world.database.rebuilds.iter().any(|rebuild| rebuild.is_put_off)
    })];
    if bounds.last > 0 {
        properties.push(Property::sometimes("a live row waits for a rebuild", |cluster: &Cluster, world: &World| {
            let waits = |row: &database::Row| row.position >= world.database.limit(row);
            running_rows(world).flatten().any(|row| row.position < cluster.bounds.last && waits(row))
        }));
    }
    if bounds.keep_old {
        properties
            .push(Property::sometimes("a rebuild is switched", |_, world: &World| world.database.kept(0).is_some()));
    }
    if bounds.readers > 0 {
        properties.push(Property::sometimes("a switch waits for a snapshot", |_, world: &World| {
            let stages = world.processes.iter().filter_map(|process| process.errand.as_ref());
            stages.clone().any(|(_, stage)| *stage == Stage::Level { awaits_reader: true })
        }));
    }
    if bounds.faults > 0 && bounds.wanted.is_none() {
        properties.push(Property::sometimes("two workers finish one rebuild", |_, world: &World| {
            let errands = world.processes.iter().filter_map(|process| process.errand.as_ref());
            errands.filter(|(attempt, _)| attempt.is_finishing).count() > 1
        }));
    }
    if bounds.wanted.is_some() {
        properties.push(Property::sometimes("another version is live", |cluster: &Cluster, world: &World| {
            world.database.projections[0].as_ref().map(|claim| claim.version) == cluster.bounds.wanted
        }));
    }
    properties
}

fn all_batches(world: &World) -> impl Iterator<Item = (usize, &KeySet)> {
    (0..world.processes.len()).flat_map(move |worker| {
        let runners = 0..world.processes[worker].runners.len();
        runners.filter_map(move |runner| Some((worker, &world.batch(worker, runner)?.0.keys)))
    })
}

fn told(world: &World) -> impl Iterator<Item = Told> {
    world.processes.iter().flat_map(|process| &process.runners).filter_map(|runner| match runner {
        Runner::Running(told, _) => Some(*told),
        _ => None,
    })
}

fn running_rows(world: &World) -> impl Iterator<Item = &Vec<database::Row>> {
    world.processes.iter().flat_map(|process| &process.runners).filter_map(|runner| match runner {
        Runner::Running(_, Some(rows)) => Some(rows),
        _ => None,
    })
}

fn bounds(knows: &[u8], already: usize, faults: u8, last: i64) -> Bounds {
    bounds_with_lanes(knows, &vec![1; knows.len()], already, faults, last)
}

fn bounds_with_lanes(knows: &[u8], lanes: &[usize], already: usize, faults: u8, last: i64) -> Bounds {
    let projections = knows.iter().fold(0, |all, knows| all | knows).count_ones() as usize;
    let probes = database::lowest_keys(lanes);
    let (knows, lanes, versions) = (knows.to_vec(), lanes.to_vec(), vec![1; lanes.len()]);
    let asked = vec![Asked::Pause, Asked::Resume, Asked::Rewind];
    let (wishes, edits, commands, readers, wanted, keep_old) = (0, 0, 0, 0, None, false);
    Bounds {
        knows,
        lanes,
        projections,
        faults,
        wishes,
        edits,
        commands,
        asked,
        versions,
        wanted,
        keep_old,
        readers,
        begun: Vec::new(),
        already,
        last,
        probes,
    }
}

fn check(bounds: Bounds) {
    let begun = Instant::now();
    println!("{bounds:?}");
    let checker = Cluster::new(bounds, Sabotage::None).checker().threads(threads()).spawn_bfs().join();
    println!(
        "{} states, {} steps, up to {} deep, in {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed()
    );
    checker.assert_properties();
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, Into::into)
}

/// Applies the sabotage, and asserts that the search finds this property violated.
fn notices(sabotage: Sabotage, bounds: Bounds, expected: &'static str) {
    let finish = HasDiscoveries::AnyOf([expected].into());
    let cluster = Cluster::new(bounds, sabotage).checker();
    let checker = cluster.threads(threads()).finish_when(finish).spawn_bfs().join();
    let trace = checker.discovery(expected).map(stateright::Path::into_actions);
    println!("{sabotage:?}: {} states, {trace:?}", checker.unique_state_count());
    assert!(trace.is_some(), "{sabotage:?} goes unnoticed");
}

#[test]
fn two_workers_survive_two_faults() {
    check(bounds(&[1, 1], 0, 2, 2));
}

#[test]
fn three_workers_join_at_any_time() {
    check(bounds(&[1, 1, 1], 0, 1, 1));
}

#[test]
fn one_of_two_workers_does_not_know_a_projection() {
    check(bounds(&[1, 3], 0, 2, 1));
}

#[test]
fn two_workers_cut_their_shares_into_lanes() {
    check(bounds_with_lanes(&[1, 1], &[2, 3], 1, 1, 1));
}

#[test]
fn a_projection_is_paused_and_resumed_under_two_workers() {
    check(Bounds { wishes: 2, ..bounds(&[1, 1], 1, 1, 1) });
}

#[test]
fn commands_are_exact_under_two_workers() {
    check(Bounds { commands: 3, ..bounds(&[1, 1], 1, 0, 1) });
    check(Bounds { commands: 2, ..bounds(&[1, 1], 2, 1, 1) });
}

/// An operator may rebuild, once, and give one more command of these.
fn rebuilt(bounds: Bounds, asked: &[Asked]) -> Bounds {
    let commands = u8::try_from(asked.len()).unwrap();
    Bounds { commands, asked: asked.to_vec(), keep_old: true, ..bounds }
}

#[test]
fn a_rebuild_is_switched_under_one_worker() {
    check(Bounds { readers: 1, ..rebuilt(bounds(&[1], 1, 0, 2), &[Asked::Rebuild]) });
}

#[test]
fn commands_are_exact_during_a_rebuild() {
    for asked in [Asked::Cancel, Asked::Pause, Asked::Rewind, Asked::Revert, Asked::DropOld] {
        check(rebuilt(bounds(&[1], 1, 0, 1), &[Asked::Rebuild, asked]));
    }
}

/// The operator has given the command, and the first worker that may do so is about to switch: the
/// live checkpoints follow.
fn following(bounds: Bounds, executor: usize) -> Bounds {
    let calm = || Step::Change(Clock::default(), Meanwhile::Nothing);
    let looks = (0..bounds.knows.len()).map(Step::Look);
    let (order, act) = (Step::Look(executor), Step::Errand(executor));
    let mut begun = vec![Step::Command(0, Asked::Rebuild), calm(), order, act, calm()];
    begun.extend(looks.chain([calm(), order, act, act]));
    Bounds { begun, ..bounds }
}

/// Two workers rebuild, and one of them may fail while the live checkpoints follow.
fn failing(last: i64) -> Bounds {
    let bounds = rebuilt(bounds(&[1, 1], 2, 1, last), &[Asked::Rebuild]);
    following(Bounds { commands: 0, ..bounds }, 0)
}

/// The second worker has a new version, for which the read model is rebuilt.
fn deployed(faults: u8) -> Bounds {
    let bounds = rebuilt(bounds(&[1, 1], 2, faults, 1), &[Asked::Rebuild]);
    Bounds { versions: vec![1, 2], wanted: Some(2), ..bounds }
}

#[test]
fn a_switch_survives_a_fault() {
    // Without events, because the search would take minutes.
    check(failing(0));
}

#[test]
fn a_rebuild_for_a_new_version_is_switched() {
    check(deployed(0));
    check(following(Bounds { commands: 0, ..deployed(1) }, 1));
}

#[test]
#[ignore = "takes minutes"]
fn a_rebuild_survives_a_fault() {
    check(deployed(1));
    check(Bounds { readers: 1, ..failing(1) });
    check(rebuilt(bounds(&[1, 1], 2, 1, 1), &[Asked::Rebuild]));
}

#[test]
#[ignore = "takes minutes"]
fn more_commands_are_exact_during_a_rebuild() {
    use Asked::{Cancel, DropOld, Pause, Rebuild, Resume, Revert, Rewind};
    for asked in [[Rebuild, Pause, Resume], [Rebuild, Revert, DropOld]] {
        check(rebuilt(bounds(&[1], 1, 0, 1), &asked));
    }
    for asked in [&[Rebuild, Cancel][..], &[Rebuild, Rewind], &[Rebuild, Pause, Resume]] {
        check(Bounds { keep_old: false, ..rebuilt(bounds(&[1, 1], 2, 0, 1), asked) });
    }
}

#[test]
#[ignore = "takes minutes"]
fn commands_are_exact_while_workers_fail() {
    check(Bounds { commands: 2, ..bounds(&[1, 1], 1, 2, 1) });
    check(Bounds { commands: 2, ..bounds_with_lanes(&[1, 3], &[1, 2], 2, 1, 1) });
}

#[test]
fn rows_are_changed_by_hand_under_two_workers() {
    check(Bounds { edits: 2, ..bounds(&[1, 1], 2, 0, 1) });
    check(Bounds { edits: 1, ..bounds(&[1, 1], 2, 1, 1) });
}

#[test]
#[ignore = "takes minutes"]
fn rows_of_one_of_two_projections_are_changed_by_hand() {
    check(Bounds { edits: 2, ..bounds_with_lanes(&[1, 3], &[1, 2], 1, 1, 1) });
}

#[test]
#[ignore = "takes minutes"]
fn one_of_two_projections_is_paused_and_resumed() {
    check(Bounds { wishes: 2, ..bounds_with_lanes(&[1, 3], &[1, 2], 2, 1, 1) });
}

#[test]
#[ignore = "takes minutes"]
fn two_workers_and_three_faults() {
    check(bounds(&[1, 1], 0, 3, 2));
}

#[test]
#[ignore = "takes minutes"]
fn three_workers_and_a_rolling_deploy() {
    check(bounds(&[1, 3, 3], 2, 1, 1));
}

/// Membership alone: without events to handle, the search can cover more workers.
#[test]
fn four_workers_without_events() {
    check(bounds(&[1, 1, 1, 1], 3, 1, 0));
}

#[test]
fn three_workers_and_two_faults_without_events() {
    check(bounds(&[1, 1, 1], 0, 2, 0));
}

#[test]
fn model_notices_each_sabotage() {
    use Sabotage as S;
    const RECOVERS: &str = "it gets well by itself";
    const ONCE: &str = "each event is handled once, in order";
    const AT_END: &str = "positions are where handling ended";
    const STALE: &str = "a batch begun before a deal cannot commit after it";
    let two = || bounds(&[1, 1], 0, 2, 2);
    let edits = || Bounds { edits: 1, ..bounds(&[1, 1], 2, 0, 1) };
    let commands = || Bounds { commands: 2, ..bounds(&[1, 1], 2, 1, 1) };
    let wishes = || Bounds { wishes: 2, ..bounds(&[1, 1], 2, 1, 2) };
    for (sabotage, bounds, expected) in [
        (S::FenceWithout(Fenced::Position), two(), ONCE),
        (S::FenceWithout(Fenced::Token), wishes(), STALE),
        (S::FenceWithout(Fenced::TokenAndGeneration), two(), AT_END),
        (S::FenceWithout(Fenced::TokenAndOwner), two(), "no two workers can commit for one key"),
        (S::TokenNotRenewed, wishes(), STALE),
        (S::DealDropsShare, two(), RECOVERS),
        (S::DealNotTold, wishes(), RECOVERS),
        (S::ClearsUndealt, commands(), ONCE),
        (S::AttemptNotCompared, commands(), ONCE),
        (S::NeverBegins, edits(), RECOVERS),
        (S::DealNumberReused, edits(), RECOVERS),
        (S::EditNotSeen, edits(), RECOVERS),
        (S::FaultBlocksAll, Bounds { edits: 1, ..bounds(&[1, 3], 1, 1, 1) }, RECOVERS),
        (S::CutDropsPiece, bounds(&[1, 1, 1], 3, 1, 2), "checkpoints partition the key space"),
        (S::CutJumps, two(), AT_END),
        (S::CutGoesBack, two(), AT_END),
        (S::ActivatesEarly, two(), RECOVERS),
        (S::ActivatesUncut, two(), RECOVERS),
        (S::IgnoresJoiners, two(), RECOVERS),
        (S::NeverEvicts, two(), RECOVERS),
        (S::NeverRejoins, two(), RECOVERS),
        (S::RunnerNotRestarted, bounds(&[3, 3], 2, 2, 1), RECOVERS),
    ] {
        notices(sabotage, bounds, expected);
    }
}

#[test]
fn model_notices_each_sabotage_of_a_rebuild() {
    use Sabotage as S;
    const RECOVERS: &str = "it gets well by itself";
    const ONCE: &str = "each event is handled once, in order";
    const STALE: &str = "a batch begun before a deal cannot commit after it";
    const READERS: &str = "no reader sees the read model go back";
    let one = || Bounds { readers: 1, ..rebuilt(bounds(&[1], 1, 0, 1), &[Asked::Rebuild]) };
    let rolled_back = following(Bounds { commands: 0, ..deployed(1) }, 1);
    for (sabotage, bounds, expected) in [
        (S::NotHeld, one(), READERS),
        (S::FollowKeepsTokens, one(), READERS),
        (S::SnapshotsNotAwaited, one(), READERS),
        (S::LevelNotChecked, one(), READERS),
        (S::SwitchKeepsTokens, one(), STALE),
        (S::SwitchedWhilePaused, rebuilt(bounds(&[1], 1, 0, 1), &[Asked::Rebuild, Asked::Pause]), ONCE),
        (S::AttemptNotCompared, failing(0), ONCE),
        (S::VersionNotCompared, deployed(0), ONCE),
        (S::NeverReleased, rolled_back, RECOVERS),
    ] {
        notices(sabotage, bounds, expected);
    }
}
