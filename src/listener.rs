//! The listener: the thread that receives notifications and passes them on as wake-ups. Between
//! notifications, it [measures](crate::measure) what is due.
//!
//! Wake-ups are hints: a thread that is woken checks for itself, and polls anyway. After every new
//! connection all threads are woken once, because notifications may have been missed.
//!
//! *Invariant:* no number of notifications prevents the thread from measuring or from stopping. So
//! it listens in turns of bounded length.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Notification};

use crate::context::Context;
use crate::error::Error;
use crate::idle::IdleProbe;
use crate::measure::Measuring;
use crate::reconnect::Reconnect;
use crate::store::notifications;
use crate::store::session::Session;
use crate::threads::{Pulse, Waker};

/// How long the thread listens before it checks whether it is to stop, or to measure. A worker that
/// leaves sends a notification, which ends the wait, so this seldom delays its end.
const TURN: Duration = Duration::from_millis(200);

const LISTENING: &str = "listening for notifications";

pub(crate) struct Listener {
    pub(crate) context: Context,
    /// Its first connection.
    pub(crate) first: Receiver<Session>,
    pub(crate) coordinator: Waker,
    pub(crate) tailer: Waker,
}

impl Listener {
    /// Runs until the worker is asked to stop.
    pub(crate) fn run(self, mut measuring: Measuring, pulse: &Pulse) -> Result<(), Error> {
        let stop = || self.context.stop.is_raised();
        let mut connection = Reconnect::new(&self.context, "listener");
        let mut probe = IdleProbe::default();
        let serve = |connection: &mut Reconnect<'_>| {
            let served = self.listen(&mut measuring, pulse, connection, &mut probe);
            probe.lost(Instant::now());
            served
        };
        let lost = |connection: &mut Reconnect<'_>, error| {
            connection.lost(&error);
            Ok(())
        };
        connection.run(stop, serve, lost).map(drop)
    }

    /// Listens on one connection until it fails or the worker stops.
    fn listen(
        &self,
        measuring: &mut Measuring,
        pulse: &Pulse,
        connection: &mut Reconnect<'_>,
        probe: &mut IdleProbe,
    ) -> Result<(), Error> {
        let coordination = notifications::coordination_payload(&self.context.names, self.context.replica_set());
        let events = notifications::events_payload(&self.context.names);
        let pass_on = |notification: &Notification| match (notification.channel(), notification.payload()) {
            (notifications::COORDINATION_CHANNEL, payload) if payload == coordination => self.coordinator.wake(),
            (notifications::EVENTS_CHANNEL, payload) if payload == events => self.tailer.wake(),
            _ => {}
        };
        let mut session = self.first.try_recv().map_or_else(|_| self.context.open(), Ok)?;
        notifications::listen(session.client()).map_err(Error::database(LISTENING))?;
        connection.works();
        probe.used(Instant::now());
        self.coordinator.wake();
        self.tailer.wake();
        while !self.context.stop.is_raised() {
            if measuring.measure(&mut session)? {
                probe.used(Instant::now());
            }
            let until = Instant::now() + TURN.min(measuring.due_in());
            while let Some(notification) = next(session.client(), until)? {
                probe.used(Instant::now());
                pulse.judged(|| pass_on(&notification));
                if self.context.stop.is_raised() {
                    return Ok(());
                }
            }
            if probe.is_due(Instant::now()) {
                session.client().simple_query("").map_err(Error::database(LISTENING))?;
                probe.used(Instant::now());
            }
        }
        Ok(())
    }
}

/// Waits for the next notification until `until`; `None` if there is none by then.
fn next(client: &mut Client, until: Instant) -> Result<Option<Notification>, Error> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(None);
    }
    let notification = client.notifications().timeout_iter(left).next().map_err(Error::database(LISTENING))?;
    if notification.is_none() && client.is_closed() {
        // The iterator ends without an error when the server closes the connection; another query
        // returns the error.
        client.simple_query("").map_err(Error::database(LISTENING))?;
    }
    Ok(notification)
}
