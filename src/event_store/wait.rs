//! Waits until projections have processed events.

use std::time::{Duration, Instant};

use postgres::Client;

use super::streams::{AppendResult, EventStore};
use super::wait_error::WaitError;
use super::wait_room::Goal;
use crate::blocking::blocking;
use crate::database::AsClient;
use crate::store::waiting::Target;

impl EventStore {
    /// Waits until these projections have processed the appended events, so that their read models
    /// contain them.
    ///
    /// It looks only at the key of the aggregate to which the events belong, and only at events
    /// that are within a projection's scope: if there are none, it returns at once. An event that
    /// an operator has discarded counts as processed.
    ///
    /// Call it after the commit, with a connection and not within a transaction. A
    /// [`hint`](Self::hint) before it makes it quick.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use pupsourcing_orchestrator::{Database, EventStore, ExpectedVersion, NewEvent, StreamId};
    ///
    /// let mut client = Database::from_url("postgres://app@localhost/shop")?.connect()?;
    /// let store = EventStore::default();
    /// let order = StreamId::new("shop", "Order", "order-7");
    /// let placed = NewEvent::new("OrderPlaced", br#"{"total":12}"#.as_slice());
    /// let appended = store.append(&mut client, &order, ExpectedVersion::NoStream, &[placed])?;
    /// store.hint(&mut client);
    /// match store.wait_for(&mut client, &["orders"], &appended, Duration::from_secs(2)) {
    ///     Ok(()) => println!("the read model contains the order"),
    ///     // The order is placed in any case. It may appear later.
    ///     Err(error) => println!("the read model may not contain it: {}", error.with_causes()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Cost
    ///
    /// A call asks the server once. After that, all callers of one event store and its clones share
    /// the polling, on the connection of one of them: every 2 ms while the newest caller has waited
    /// less than 50 ms, and less often later, down to every 100 ms. So keep one event store, and
    /// clone it. Callers with connections to different databases may use the same one.
    ///
    /// A statement that the server does not answer is not interrupted. Limit it on the connection,
    /// with `statement_timeout` or `tcp_user_timeout`.
    ///
    /// # Privileges
    ///
    /// The user needs `SELECT` on the events and on the tables of projections, checkpoints,
    /// workers, commands and parked aggregates; see `examples/postgres/roles.sql`.
    ///
    /// # Errors
    ///
    /// [`WaitError`], as soon as one of the projections cannot get there without an operator: it is
    /// unknown, halted or paused, has parked the aggregate, or was processed by no worker for ten
    /// seconds, so that a deployment may replace all workers. While an operator's command rewinds
    /// the projection, this waits. A projection that is rewound after it was seen to have processed
    /// the events counts as done. [`WaitError::TimedOut`] if the time is up; it tells whether the
    /// events were visible at all.
    pub fn wait_for(
        &self,
        client: &mut impl AsClient<Client = Client>,
        projections: &[&str],
        appended: &AppendResult,
        timeout: Duration,
    ) -> Result<(), WaitError> {
        let events = appended.positions.iter().copied().zip(appended.event_ids.iter().copied());
        let target = Target::Events(events.collect());
        self.wait_until(client.as_client(), &Goal { projections, target, timeout })
    }

    pub(crate) fn wait_until(&self, client: &mut Client, goal: &Goal<'_>) -> Result<(), WaitError> {
        let begun = Instant::now();
        let outcome = blocking(|| self.room.wait(client, &self.names, goal))
            .unwrap_or_else(|source| Err(WaitError::Thread { source }));
        if let Some(metrics) = &self.metrics {
            let outcome = outcome.as_ref().map_or_else(WaitError::outcome, |()| "done");
            metrics.waits(outcome).wait_duration.observe(begun.elapsed().as_secs_f64());
        }
        outcome
    }
}
