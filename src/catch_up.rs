//! Watches the progress of a worker that was asked to [run to a
//! position](crate::Orchestrator::run_to).
//!
//! A worker owns only a part of the keys while other workers run. So the thread reads the
//! checkpoints, not the memory of this process, to find whether the goal is reached. The runners of
//! this process wake it when they cross the goal. It polls for the progress of other workers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use crate::context::Context;
use crate::error::Error;
use crate::reconnect::Reconnect;
use crate::status::{ProjectionState, Status};
use crate::store::Known;
use crate::store::progress::{self, Standing};

/// How often the checkpoints are read.
const EVERY: Duration = Duration::from_millis(100);
/// The time over which the rate is measured.
const WINDOW: Duration = Duration::from_secs(10);

const READING: &str = "reading the progress";

/// The progress of a worker, together with the other workers of its replica set, towards the
/// position at which it stops.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Progress {
    /// Every projection of the worker has processed every event at or below this global position.
    /// `None` while it is not known.
    pub position: Option<i64>,
    /// The position at which the worker stops. `None` while it is not known.
    pub target: Option<i64>,
    /// How many events the projections are behind the target: the sum over the projections,
    /// estimated from the positions. It includes events that are not in the scope of a projection.
    pub left: u64,
    /// By how many events per second the projections approached the target, over the last ten
    /// seconds. `None` while it is not known.
    pub events_per_second: Option<f64>,
    /// The time until the target is reached at this rate. `None` while the rate is not known or is
    /// zero.
    pub time_to_go: Option<Duration>,
}

impl Progress {
    /// Whether every projection has reached the target.
    pub fn is_complete(&self) -> bool {
        self.position.zip(self.target).is_some_and(|(position, target)| position >= target)
    }

    fn of(standings: &[Standing], target: i64, rate: Option<f64>) -> Self {
        let left = standings.iter().map(|standing| standing.left).sum();
        // If a projection has no checkpoints, it has no position, and neither has the worker.
        let positions: Option<Vec<i64>> = standings.iter().map(|standing| standing.position).collect();
        Self {
            position: positions.and_then(|all| all.into_iter().min()),
            target: Some(target),
            left: whole(left),
            events_per_second: rate,
            time_to_go: rate.filter(|rate| *rate > 0.0).and_then(|rate| Duration::try_from_secs_f64(left / rate).ok()),
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
fn whole(number: f64) -> u64 {
    number.ceil() as u64
}

/// The thread that watches the progress.
#[derive(Debug)]
pub(crate) struct CatchUp {
    pub(crate) context: Context,
    pub(crate) projections: Vec<Known>,
    /// A runner of this worker has crossed the goal.
    pub(crate) crossed: Receiver<()>,
    /// Receives the progress. An error is the last message.
    pub(crate) reports: Sender<Result<Progress, Error>>,
}

impl CatchUp {
    /// Runs until the goal is reached, cannot be reached, or the worker is asked to stop.
    pub(crate) fn run(self) -> Result<(), Error> {
        let stop = || self.context.stop.is_raised();
        let mut pace = Pace::default();
        let lost = |connection: &mut Reconnect<'_>, error| {
            connection.lost(&error);
            Ok(())
        };
        Reconnect::new(&self.context, "catch-up")
            .run(stop, |connection| self.watch(&mut pace, connection), lost)
            .map(drop)
    }

    fn watch(&self, pace: &mut Pace, connection: &mut Reconnect<'_>) -> Result<(), Error> {
        let Context { names, board, stop, goal, .. } = &self.context;
        let goal = goal.position();
        let mut session = self.context.open()?;
        loop {
            let standings = session
                .run(|client| progress::load(client, names, &self.projections, board.worker_id(), goal))
                .map_err(Error::database(READING))?;
            connection.works();
            let left = standings.iter().map(|standing| standing.left).sum();
            let progress = Progress::of(&standings, goal, pace.rate(Instant::now(), left));
            if let Some(stopped) = stopped(&standings, &board.read(), goal) {
                self.say(Err(stopped));
                return Ok(());
            }
            if progress.is_complete() {
                self.say(Ok(progress));
                return Ok(());
            }
            // If the receiver has not taken the last report yet, this one is dropped.
            _ = self.reports.try_send(Ok(progress));
            select! {
                recv(stop.heard()) -> _ => return Ok(()),
                recv(self.crossed) -> _ => {}
                default(EVERY) => {}
            }
        }
    }

    fn say(&self, last: Result<Progress, Error>) {
        select! {
            send(self.reports, last) -> _ => {}
            recv(self.context.stop.heard()) -> _ => {}
        }
    }
}

/// Returns an error for the first projection that cannot reach the goal without intervention.
fn stopped(standings: &[Standing], own: &Status, goal: i64) -> Option<Error> {
    let behind = standings.iter().filter(|standing| standing.position.is_none_or(|position| position < goal));
    behind.into_iter().find_map(|Standing { projection, halted, is_paused, fault, lacking, .. }| {
        // If a worker cannot load its checkpoints, its own status has the error, but the
        // checkpoints do not.
        let halted_here = own
            .projections
            .get(projection)
            .filter(|status| status.state == ProjectionState::Halted && status.position.is_none_or(|at| at < goal))
            .map(|status| status.error.clone().unwrap_or_default());
        let problem = if let Some(error) = halted_here.as_ref().or(halted.as_ref()) {
            format!("has halted: {error}")
        } else if *is_paused {
            "is paused: let it run first".to_owned()
        } else if let Some(fault) = fault {
            format!("is processed by no worker, because its checkpoints are {fault}: the log says what to do")
        } else if let Some(version) = lacking {
            format!("has a live read model of version {version}, and no worker has that version of its code: start one, or rebuild it")
        } else {
            return None;
        };
        Some(Error::ProjectionStopped { projection: projection.clone(), problem })
    })
}

/// How many events were left at which moment, over the last seconds.
#[derive(Debug, Default)]
struct Pace(VecDeque<(Instant, f64)>);

impl Pace {
    /// Records how many events are left now, and returns by how many this decreases per second.
    fn rate(&mut self, now: Instant, left: f64) -> Option<f64> {
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
        // Runners may wake the thread more often; those samples are not needed.
        if self.0.back().is_none_or(|(at, _)| now.duration_since(*at) >= EVERY / 2) {
            self.0.push_back((now, left));
        }
        let (since, before) = self.0.front()?;
        let passed = now.duration_since(*since);
        (passed >= EVERY).then(|| (before - left).max(0.0) / passed.as_secs_f64())
    }
}
