//! The handle of a running worker.

use std::time::Duration;

use crossbeam_channel::Receiver;

use super::reach::Outcome;
use crate::database::Database;
use crate::error::{Error, field};
use crate::metrics::{Metrics, WorkerMetrics};
use crate::operator::Operator;
use crate::overview::Overview;
use crate::plan::WorkerId;
use crate::probe::HealthProbe;
use crate::status::{Assignment, Board, Status};
use crate::store::Names;
use crate::threads::{Crew, safely};

/// How long a worker that is being dropped waits for its threads: enough for one batch of a
/// well-behaved handler, and for leaving the replica set.
const DROP_PATIENCE: Duration = Duration::from_secs(10);

/// How long a worker that is asked to stop during its start waits for the start to end. The start
/// may be waiting for a server that does not answer; then it is left behind. If it succeeds later,
/// the worker leaves the replica set.
const GIVE_UP_PATIENCE: Duration = Duration::from_secs(1);

/// The handle of a running worker. Dropping it stops the worker and waits for it, at most 10 s. In
/// one of the worker's own handlers, the drop does not wait.
#[derive(Debug)]
#[must_use = "dropping the handle stops the worker"]
pub struct Handle {
    pub(super) crew: Crew,
    pub(super) board: Board,
    pub(super) overview: Overview,
    pub(super) database: Database,
    pub(super) names: Names,
    pub(super) metrics: Metrics,
    /// Keeps the series of a worker that has failed, so that they show the failure while the handle
    /// exists.
    pub(super) _own_metrics: WorkerMetrics,
    /// Whether a caller has already waited for the end, so that the drop does not wait again.
    pub(super) waited_for: bool,
}

impl Handle {
    /// The worker's identity, as in the table of workers and the metrics.
    pub fn worker_id(&self) -> WorkerId {
        self.board.worker_id()
    }

    /// The partition that the worker currently holds, if it holds one.
    pub fn assignment(&self) -> Option<Assignment> {
        self.board.read().assignment
    }

    /// The worker's current status. This never queries the database.
    pub fn status(&self) -> Status {
        self.board.read()
    }

    /// The metrics that this worker reports to.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns a probe, with which a [`MetricsServer`](crate::MetricsServer) reports this worker's
    /// health and status.
    pub fn health(&self) -> HealthProbe {
        probe(&self.crew, &self.board, &self.overview, &self.database, &self.names)
    }

    /// Asks the worker to leave, without waiting for it.
    pub fn request_shutdown(&self) {
        self.crew.stop().raise();
    }

    /// Blocks until `shutdown` becomes ready or disconnected, or the worker fails. Then leaves
    /// gracefully, and waits for the handlers to finish what they have begun.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    pub fn run_until(self, shutdown: &Receiver<()>) -> Result<(), Error> {
        crossbeam_channel::select! {
            recv(shutdown) -> _ => {}
            recv(self.crew.stop().heard()) -> _ => {}
        }
        self.crew.stop().raise();
        self.join()
    }

    /// Leaves gracefully: the runners commit what they have handled, the partitions are
    /// redistributed, and the threads end.
    ///
    /// # Errors
    ///
    /// [`Error::ShutdownTimeout`] if a handler takes longer. The threads then still end on their
    /// own; if the process exits before that, other workers process what was not committed.
    /// [`Error::OwnThread`] if a handler of this worker calls this method; the worker leaves
    /// nevertheless. If a thread failed before, the error of [`join`](Self::join).
    pub fn shutdown(mut self, timeout: Duration) -> Result<(), Error> {
        self.crew.stop().raise();
        self.waited_for = true;
        self.crew.join(Some(timeout))
    }

    /// Waits until the worker has ended, because [`request_shutdown`](Self::request_shutdown) was
    /// called or because a thread failed.
    ///
    /// # Errors
    ///
    /// The failure of the thread: [`Error::ThreadPanicked`], or [`Error::Schema`] if positions of
    /// events are assigned a second time. [`Error::OwnThread`] if a handler of this worker calls
    /// this method; the handle is then dropped, so the worker leaves.
    pub fn join(mut self) -> Result<(), Error> {
        self.waited_for = true;
        self.crew.join(None)
    }
}

impl Handle {
    /// Gives up a start that is in progress.
    pub(super) fn give_up(mut self, started: &Outcome<()>) -> Result<(), Error> {
        self.crew.stop().raise();
        self.waited_for = true;
        match started.recv_timeout(GIVE_UP_PATIENCE) {
            Ok(Ok(())) => self.crew.join(None),
            Ok(Err(panicked @ Error::ThreadPanicked { .. })) => Err(panicked),
            // The reason of the failure no longer matters.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.crew.stop().raise();
        if self.waited_for {
            return;
        }
        if let Err(error) = self.crew.join(Some(DROP_PATIENCE)) {
            let (replica_set, worker) = (self.board.replica_set(), self.board.worker_id());
            safely(|| {
                log::warn!(
                    "worker dropped: replica_set={replica_set} worker={worker} error={error}",
                    replica_set = field(&replica_set),
                    error = field(&error)
                );
            });
        }
    }
}

/// Creates the probe of a worker, whether or not the worker has been started.
pub(super) fn probe(
    crew: &Crew,
    board: &Board,
    overview: &Overview,
    database: &Database,
    names: &Names,
) -> HealthProbe {
    let (crew, stop, ready, status, overview) =
        (crew.clone(), crew.stop().clone(), board.clone(), board.clone(), overview.clone());
    let (database, names, replica_set) = (database.clone(), names.clone(), board.replica_set().to_owned());
    HealthProbe::new(
        move || match crew.stuck() {
            Some(thread) => Err(format!("thread {thread} is stuck or has failed")),
            None => Ok(()),
        },
        move || ready.readiness(stop.is_raised()).map_err(|reason| reason.to_string()),
        move || status.read(),
        move || overview.look(),
        move || {
            let operator = Operator::new(names.clone())?.replica_set(replica_set.clone());
            Ok((operator, database.connect()?))
        },
    )
}
