//! What a worker measures from time to time: the lag and the condition of each projection, and the
//! overview of the replica set.
//!
//! Both read the table of events, which another session may lock for a long time. So the listener
//! measures, on its own connection, on which nothing else relies: heartbeats continue meanwhile.
//!
//! *Invariant:* no lag is shown that is older than [`INTERVALS`] intervals. The thread that
//! measures may be waiting for the server by then, so another thread removes an old lag:
//! [`watch`](crate::watch).

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backoff::Mentions;
use crate::context::Context;
use crate::error::{Error, field};
use crate::metrics::{Rebuild, ReplicaSetMetrics};
use crate::overview::Overview;
use crate::rebuilding::{Readings, RebuildRecord};
use crate::store::session::Session;
use crate::store::{lags, overview};

/// For how many intervals a lag is shown.
const INTERVALS: u32 = 3;
/// How often the progress of a rebuild is logged.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The lag in the metrics. Clones share the same lag.
#[derive(Debug, Clone)]
pub(crate) struct Lags {
    metrics: ReplicaSetMetrics,
    every: Duration,
    /// When the lag that is shown was measured.
    measured: Arc<Mutex<Option<Instant>>>,
}

impl Lags {
    /// Creates a place for the lag, which is to be measured at this interval.
    pub(crate) fn new(metrics: ReplicaSetMetrics, every: Duration) -> Self {
        Self { metrics, every, measured: Arc::default() }
    }

    /// Measures, and returns the rebuilds that this worker is to report.
    fn measure(
        &self,
        context: &Context,
        session: &mut Session,
        readings: &mut Readings,
    ) -> Result<Vec<(String, RebuildRecord)>, Error> {
        let at = Instant::now();
        let lags = session
            .run(|client| lags::load(client, &context.names, context.replica_set(), context.worker()))
            .map_err(Error::database("reading the lag"))?;
        let mut measured = self.measured.lock();
        *measured = Some(at);
        lags.show(&self.metrics);
        let rebuilds = lags.rebuilds.iter().map(|(projection, reading)| (projection.clone(), readings.record(reading)));
        let rebuilds: Vec<(String, RebuildRecord)> = rebuilds.collect();
        self.metrics.set_rebuilds(&rebuilds.iter().map(|(projection, record)| Rebuild {
            projection,
            progress: record.progress,
            events: record.events,
            positions_to_go: record.positions_left,
            is_blocked: !record.blocked.is_empty(),
        }));
        Ok(if lags.is_speaker { rebuilds } else { Vec::new() })
    }

    /// Removes a lag that has not been measured for too long.
    pub(crate) fn drop_outdated(&self) {
        let mut measured = self.measured.lock();
        if measured.is_some_and(|at| at.elapsed() > self.every.saturating_mul(INTERVALS)) {
            *measured = None;
            self.metrics.set_lags(std::iter::empty());
            self.metrics.set_conditions(&std::iter::empty());
            self.metrics.set_rebuilds(&std::iter::empty());
            self.metrics.set_old_tables(std::iter::empty());
        }
    }
}

/// Measures what is due.
#[derive(Debug)]
pub(crate) struct Measuring {
    context: Context,
    lags: Lags,
    overview: Overview,
    readings: Readings,
    lag_due: Instant,
    log_due: Instant,
    complaints: Mentions,
}

impl Measuring {
    pub(crate) fn new(context: Context, lags: Lags, overview: Overview) -> Self {
        let (readings, now) = (Readings::default(), Instant::now());
        Self { context, lags, overview, readings, lag_due: now, log_due: now, complaints: Mentions::default() }
    }

    /// The time until the next measurement is due.
    pub(crate) fn due_in(&self) -> Duration {
        let lag = self.lag_due.saturating_duration_since(Instant::now());
        self.overview.due_in().map_or(lag, |overview| overview.min(lag))
    }

    /// Measures what is due. Returns whether anything was, and an error only if the connection is
    /// lost.
    pub(crate) fn measure(&mut self, session: &mut Session) -> Result<bool, Error> {
        let mut was_due = self.lag_due <= Instant::now();
        if was_due {
            self.lag_due = Instant::now() + self.lags.every;
            let measured = self.lags.measure(&self.context, session, &mut self.readings);
            let measured = measured.map(|rebuilds| self.report(&rebuilds));
            self.complain(session, measured)?;
        }
        let Self { context, overview, readings, .. } = self;
        let refreshed = overview.refresh(|| {
            was_due = true;
            session
                .run(|client| overview::load(client, &context.names, context.replica_set(), readings))
                .map_err(Error::database("loading the overview"))
        });
        self.complain(session, refreshed)?;
        Ok(was_due)
    }

    /// Logs the progress of rebuilds, if it is due.
    fn report(&mut self, rebuilds: &[(String, RebuildRecord)]) {
        if rebuilds.is_empty() || self.log_due > Instant::now() {
            return;
        }
        self.log_due = Instant::now() + LOG_EVERY;
        let (replica_set, worker) = (self.context.replica_set(), self.context.worker());
        for (projection, record) in rebuilds {
            let time_to_go = record.seconds_to_go.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            let blocked = if record.blocked.is_empty() { "no".to_owned() } else { record.blocked.join("; ") };
            log::info!(
                "rebuilding: replica_set={} worker={worker} projection={} state={} progress={} events={} events_per_second={} \
                 left={} time_to_go={} blocked={}",
                field(&replica_set),
                field(&projection),
                field(&record.state),
                field(&format!("{:.1}%", record.progress * 100.0)),
                record.events,
                field(&format!("{:.0}", record.events_per_second)),
                field(&record.positions_left),
                field(&time_to_go.map_or_else(|| "unknown".to_owned(), |time| format!("{time:?}"))),
                field(&blocked)
            );
        }
    }

    /// Reports a failure, and passes it on if the connection is lost.
    fn complain(&mut self, session: &Session, outcome: Result<(), Error>) -> Result<(), Error> {
        let Err(error) = outcome else { return Ok(()) };
        if session.is_closed() {
            return Err(error);
        }
        if self.complaints.is_due() {
            log::warn!(
                "measuring failed, will retry: replica_set={} worker={} error={}",
                field(&self.context.replica_set()),
                self.context.worker(),
                field(&error)
            );
        }
        Ok(())
    }
}
