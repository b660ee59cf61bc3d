//! The listener: the thread that hears notifications and passes them on as wake-ups.
//!
//! Wake-ups are hints: whoever is woken looks for itself, and polls anyway. After every new connection everybody is woken once, for what
//! may have been missed.

use std::time::Duration;

use crossbeam_channel::Sender;
use postgres::fallible_iterator::FallibleIterator;

use crate::backoff::Backoff;
use crate::database::Database;
use crate::error::Error;
use crate::metrics::ReplicaSetMetrics;
use crate::status::Board;
use crate::store::session::{Session, Sessions};
use crate::store::{Names, notifications};
use crate::threads::{Pulse, Stop, Waker};

/// How often the thread looks whether it is to stop. It only matters when nobody notifies; a leaving worker does.
const STOP_CHECK: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) database: Database,
    pub(crate) names: Names,
    pub(crate) sessions: Sessions,
    /// Wakes the coordinator.
    pub(crate) coordination: Sender<()>,
    /// Wakes the tailer.
    pub(crate) events: Waker,
    pub(crate) stop: Stop,
    pub(crate) board: Board,
    pub(crate) metrics: ReplicaSetMetrics,
}

impl Listener {
    pub(crate) fn run(self, pulse: &Pulse) {
        let mut backoff = Backoff::for_connections();
        while !self.stop.is_raised() {
            pulse.beat();
            let Err(error) = self.listen(pulse, &mut backoff) else { break };
            if backoff.is_worth_logging() {
                log::warn!(
                    "connection lost: replica_set={} worker={} connection=listener error={error}",
                    self.board.replica_set(),
                    self.board.worker_id()
                );
            }
            self.metrics.reconnects("listener").inc();
            self.stop.wait(backoff.next_delay());
        }
    }

    fn listen(&self, pulse: &Pulse, backoff: &mut Backoff) -> Result<(), Error> {
        let doing = "listening for notifications";
        let coordination = notifications::coordination_payload(&self.names, self.board.replica_set());
        let events = notifications::events_payload(&self.names);
        let mut session = Session::open(&self.database, self.sessions)?;
        let client = session.client();
        notifications::listen(client).map_err(Error::database(doing))?;
        if backoff.reset() {
            log::info!(
                "connection regained: replica_set={} worker={} connection=listener",
                self.board.replica_set(),
                self.board.worker_id()
            );
        }
        wake(&self.coordination);
        self.events.wake();
        while !self.stop.is_raised() {
            pulse.beat();
            let mut notifications = client.notifications();
            let mut heard = notifications.timeout_iter(STOP_CHECK);
            while let Some(notification) = heard.next().map_err(Error::database(doing))? {
                match (notification.channel(), notification.payload()) {
                    (notifications::COORDINATION_CHANNEL, payload) if payload == coordination => {
                        wake(&self.coordination);
                    }
                    (notifications::EVENTS_CHANNEL, payload) if payload == events => self.events.wake(),
                    _ => {}
                }
                if self.stop.is_raised() {
                    return Ok(());
                }
            }
            drop(heard);
            drop(notifications);
            if client.is_closed() {
                // The iterator ends without an error when the server closes the connection; asking once more gives one.
                client.simple_query("").map_err(Error::database(doing))?;
            }
        }
        Ok(())
    }
}

fn wake(sleeper: &Sender<()>) {
    // Full means that it is to be woken already; disconnected, that it has ended.
    _ = sleeper.try_send(());
}
