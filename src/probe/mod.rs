//! The probe: answers an HTTP server's questions about one orchestrator.

mod report;

use std::fmt;
use std::sync::Arc;

pub use self::report::StatusReport;
use crate::database::Connection;
use crate::error::Error;
use crate::operator::Operator;
use crate::overview::Sight;
use crate::plan::WorkerId;
use crate::status::Status;

/// Reports the health and the status of one orchestrator, immediately and without the database.
///
/// The orchestrator and its handle return it. Give it to a [`MetricsServer`](crate::MetricsServer),
/// whose documentation explains the answers, or use it in the application's own HTTP server:
///
/// ```
/// use pupsourcing_orchestrator::HealthProbe;
///
/// fn answer(path: &str, probe: &HealthProbe) -> (u16, String) {
///     let health = match path {
///         "/livez" => probe.live(),
///         "/readyz" => probe.ready(),
///         "/status" => return (200, probe.status().to_string()),
///         _ => return (404, "no such path".to_owned()),
///     };
///     match health {
///         Ok(()) => (200, "ok".to_owned()),
///         Err(reason) => (503, reason.to_string()),
///     }
/// }
/// ```
#[derive(Clone)]
pub struct HealthProbe {
    live: Check,
    ready: Check,
    status: Arc<dyn Fn() -> Status + Send + Sync>,
    look: Arc<dyn Fn() -> Option<Sight> + Send + Sync>,
    operator: Arc<dyn Fn() -> Result<(Operator, Connection), Error> + Send + Sync>,
}

/// A check; its error is the reason why it failed.
type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

impl HealthProbe {
    /// Creates a probe. The functions must answer immediately and from memory, except for
    /// `operator`.
    pub(crate) fn new(
        live: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        status: impl Fn() -> Status + Send + Sync + 'static,
        look: impl Fn() -> Option<Sight> + Send + Sync + 'static,
        operator: impl Fn() -> Result<(Operator, Connection), Error> + Send + Sync + 'static,
    ) -> Self {
        Self {
            live: Arc::new(live),
            ready: Arc::new(ready),
            status: Arc::new(status),
            look: Arc::new(look),
            operator: Arc::new(operator),
        }
    }

    /// Whether the worker's threads run, as `/livez` of the `MetricsServer` reports it. An error
    /// means that a restart of the process would help.
    pub fn live(&self) -> Result<(), Unhealthy> {
        self.check(&self.live)
    }

    /// Whether the worker can process events, as `/readyz` of the `MetricsServer` reports it. If it
    /// cannot, a restart does not help.
    pub fn ready(&self) -> Result<(), Unhealthy> {
        self.check(&self.ready)
    }

    /// What the worker knows about itself and its replica set, as `/status` of the `MetricsServer`
    /// shows it. While this method is called regularly, the worker loads an overview of the replica
    /// set at most once a second. The first report has no overview yet.
    pub fn status(&self) -> StatusReport {
        StatusReport::new((self.status)(), (self.look)())
    }

    /// Returns an operator of the worker's replica set, and a connection of the worker's role for
    /// it. Unlike the other methods, this one connects to the database, and blocks meanwhile. To
    /// give commands, the role needs the privileges of an operator.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] or [`Error::ConnectTimeout`].
    pub fn operator(&self) -> Result<(Operator, Connection), Error> {
        (self.operator)()
    }

    /// What the worker knows about itself. Nothing is loaded for it.
    pub(crate) fn own(&self) -> Status {
        (self.status)()
    }

    pub(crate) fn worker_id(&self) -> WorkerId {
        self.own().worker_id
    }

    fn check(&self, check: &Check) -> Result<(), Unhealthy> {
        check().map_err(|reason| {
            let Status { replica_set, worker_id, .. } = self.own();
            Unhealthy { replica_set, worker_id, reason }
        })
    }
}

impl fmt::Debug for HealthProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthProbe").field("worker_id", &self.worker_id()).finish_non_exhaustive()
    }
}

/// Why a worker is not live or not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("replica_set={replica_set} worker={worker_id}: {reason}")]
#[non_exhaustive]
pub struct Unhealthy {
    /// The worker's replica set.
    pub replica_set: String,
    /// The worker.
    pub worker_id: WorkerId,
    /// The reason, in one line.
    pub reason: String,
}
