//! Runs a worker until the events that were visible when it began are processed.

use crossbeam_channel::{Receiver, bounded, select};

use super::reach::settled;
use super::start::RunTo;
use super::worker::Orchestrator;
use crate::catch_up::Progress;
use crate::error::Error;

impl Orchestrator {
    /// Runs as a normal member of the replica set until all events that were visible when it
    /// registered, or those of them up to `position`, are processed. Then it leaves gracefully and
    /// returns. It also returns when `shutdown` becomes ready or disconnected:
    /// [`is_complete`](Progress::is_complete) tells the two cases apart.
    ///
    /// Other workers of the replica set may run at the same time; each processes its part. The run
    /// is complete when the whole replica set has processed these events for all projections of
    /// this worker. It does not wait for events that are appended later. Like every worker, it
    /// waits for transactions that were writing lower positions when it began.
    ///
    /// `progress` is called on this thread, with the first known progress, then at most about every
    /// 100 ms, and with the last.
    ///
    /// ```no_run
    /// # use pupsourcing_orchestrator::{BoxError, Database, Event, Orchestrator, Projection};
    /// # struct OrderCount;
    /// # impl Projection for OrderCount {
    /// #     fn name(&self) -> &str { "order_count" }
    /// #     fn handle(
    /// #         &self,
    /// #         _: &mut pupsourcing_orchestrator::Tx<'_>,
    /// #         _: &Event,
    /// #     ) -> Result<(), BoxError> {
    /// #         Ok(())
    /// #     }
    /// # }
    /// # let database = Database::from_url("postgres://app@localhost/shop")?;
    /// let orchestrator = Orchestrator::builder(database, "main-projections")
    ///     .projection(OrderCount)
    ///     .build()?;
    /// let shutdown = crossbeam_channel::never();
    /// let end = orchestrator.run_to(None, &shutdown, |progress| println!("{progress:?}"))?;
    /// assert!(end.is_complete());
    /// # Ok::<(), pupsourcing_orchestrator::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ProjectionStopped`] if a projection halts before that, on this worker or on
    /// another, or is paused. The worker has left in this case, too. The errors of
    /// [`start`](Self::start) and [`Handle::join`](crate::Handle::join).
    pub fn run_to(
        self,
        position: Option<i64>,
        shutdown: &Receiver<()>,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Progress, Error> {
        let position = position.unwrap_or(i64::MAX);
        if position < 0 {
            let problem = "positions begin with 1, and 0 is before the first";
            return Err(Error::config("position", position.to_string(), problem));
        }
        let mut last = Progress::default();
        let (reports, reported) = bounded(1);
        let (handle, started) = self.begin(Some(RunTo { position, reports }))?;
        select! {
            recv(started) -> outcome => outcome.unwrap_or_else(|_| settled(&started))?,
            recv(shutdown) -> _ => return handle.give_up(&started).map(|()| last),
        }
        let stopped = loop {
            select! {
                recv(reported) -> report => match report {
                    Ok(Ok(seen)) => {
                        last = seen;
                        progress(&last);
                        if last.is_complete() {
                            break Ok(());
                        }
                    }
                    Ok(Err(stopped)) => break Err(stopped),
                    // The thread that reports has ended, and the whole worker will end.
                    Err(_) => break Ok(()),
                },
                recv(shutdown) -> _ => break Ok(()),
            }
        };
        handle.request_shutdown();
        let left = handle.join();
        stopped.and(left).map(|()| last)
    }
}
