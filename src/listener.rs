//! The listener: the thread that receives notifications and passes them on as wake-ups.
//!
//! Wake-ups are hints: a thread that is woken checks for itself, and polls anyway. After every new
//! connection all threads are woken once, because notifications may have been missed.

use std::time::{Duration, Instant};

use postgres::fallible_iterator::FallibleIterator;

use crate::context::Context;
use crate::error::Error;
use crate::idle::IdleProbe;
use crate::reconnect::Reconnect;
use crate::store::notifications;
use crate::threads::{Pulse, Waker};

/// How often the thread checks whether it is to stop. It matters only while there are no
/// notifications; a worker that leaves does notify.
const STOP_CHECK: Duration = Duration::from_millis(200);

const LISTENING: &str = "listening for notifications";

#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) context: Context,
    pub(crate) coordinator: Waker,
    pub(crate) tailer: Waker,
}

impl Listener {
    pub(crate) fn run(self, pulse: &Pulse) -> Result<(), Error> {
        let stop = || self.context.stop.is_raised();
        let mut connection = Reconnect::new(&self.context, "listener");
        let mut probe = IdleProbe::default();
        let serve = |connection: &mut Reconnect<'_>| {
            let served = self.listen(pulse, connection, &mut probe);
            probe.lost(Instant::now());
            served
        };
        let lost = |connection: &mut Reconnect<'_>, error| {
            connection.lost(&error);
            Ok(())
        };
        connection.run(pulse, stop, serve, lost).map(drop)
    }

    /// Listens on one connection until it fails or the worker stops.
    fn listen(&self, pulse: &Pulse, connection: &mut Reconnect<'_>, probe: &mut IdleProbe) -> Result<(), Error> {
        let coordination = notifications::coordination_payload(&self.context.names, self.context.replica_set());
        let events = notifications::events_payload(&self.context.names);
        let mut session = self.context.open()?;
        let client = session.client();
        notifications::listen(client).map_err(Error::database(LISTENING))?;
        connection.works();
        probe.used(Instant::now());
        self.coordinator.wake();
        self.tailer.wake();
        while !self.context.stop.is_raised() {
            pulse.beat();
            let mut notifications = client.notifications();
            let mut heard = notifications.timeout_iter(STOP_CHECK);
            while let Some(notification) = heard.next().map_err(Error::database(LISTENING))? {
                probe.used(Instant::now());
                match (notification.channel(), notification.payload()) {
                    (notifications::COORDINATION_CHANNEL, payload) if payload == coordination => {
                        self.coordinator.wake();
                    }
                    (notifications::EVENTS_CHANNEL, payload) if payload == events => self.tailer.wake(),
                    _ => {}
                }
                if self.context.stop.is_raised() {
                    return Ok(());
                }
            }
            drop(heard);
            drop(notifications);
            let is_probe_due = probe.is_due(Instant::now());
            if client.is_closed() || is_probe_due {
                // The iterator ends without an error when the server closes the connection; another
                // query returns the error.
                client.simple_query("").map_err(Error::database(LISTENING))?;
                probe.used(Instant::now());
            }
        }
        Ok(())
    }
}
