//! Calls a reaction. While it runs, the runner has no connection and nothing loaded. What it needs
//! afterwards is in the [portion](Portion): the checkpoint, and the events.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select};

use super::failure::Failure;
use super::flight::Flight;
use super::portion::{Origin, Owed, Portion};
use super::settling::Unrecorded;
use super::work::Work;
use crate::error::BoxError;
use crate::event::Event;
use crate::projection::{self, Call, Passing, Reacts, Work as Handling};

/// How often a runner with calls in flight checks whether it has to pause.
const PAUSE_CHECK: Duration = Duration::from_millis(20);

impl Work<'_> {
    /// Whether a reaction has done something that is not recorded, or has failed.
    pub(super) fn is_owing(&self) -> bool {
        self.owed.is_some()
    }

    /// Calls the reaction, without a connection.
    pub(super) fn react(&mut self, portion: Portion) {
        let runner = self.runner;
        self.loaded = None;
        let Handling::Reacts(reaction) = runner.handler.work() else { return };
        let is_pause_requested = || runner.is_pause_requested();
        let call = Call {
            projection: &runner.name,
            generation: portion.owner.generation,
            is_replay: portion.is_replay,
            deadline: Instant::now() + runner.call_limit,
            is_pause_requested: &is_pause_requested,
        };
        let mut owed = Owed { portion, done: 0, recorded: 0, error: None, is_fenced: false };
        match (&owed.portion.origin, runner.settings.in_flight) {
            (Origin::Range { .. }, 2..) => self.react_in_flight(reaction, call, &mut owed),
            (_, in_flight) => {
                let events = match in_flight {
                    1 => &*owed.portion.events,
                    // The reaction expects one event at a time.
                    _ => owed.portion.events.get(..1).unwrap_or_default(),
                };
                let begun = Instant::now();
                match projection::react(reaction, &call, events) {
                    Ok(done) => {
                        owed.done = done;
                        self.observe(begun.elapsed(), done);
                    }
                    Err(error) => owed.error = Some(error),
                }
            }
        }
        self.owed = Some(owed);
    }

    fn observe(&self, took: Duration, events: usize) {
        let each = took.as_secs_f64() / f64::from(u32::try_from(events).unwrap_or(u32::MAX));
        let durations = self.runner.metrics.processing_duration.local();
        (0..events).for_each(|_| durations.observe(each));
    }

    /// Calls the reaction for several events at once, on threads of their own, and records
    /// meanwhile what is done.
    fn react_in_flight(&mut self, reaction: &dyn Reacts, call: Call<'_>, owed: &mut Owed) {
        let runner = self.runner;
        let events = Arc::clone(&owed.portion.events);
        let most = runner.settings.in_flight.min(events.len());
        let mut flight = Flight::new(&events, most, &self.done_beyond);
        let mut errors: Vec<(usize, BoxError)> = Vec::new();
        let (orders, inbox) = bounded::<(usize, &Event)>(most);
        let (outcomes, ended) = bounded(most);
        thread::scope(|scope| {
            for started in 0..most {
                let (inbox, outcomes) = (inbox.clone(), outcomes.clone());
                let calls = move || {
                    for (index, event) in inbox {
                        let call = Call { deadline: Instant::now() + runner.call_limit, ..call };
                        let begun = Instant::now();
                        let outcome = projection::react(reaction, &call, std::slice::from_ref(event));
                        _ = outcomes.send((index, begun.elapsed(), outcome));
                    }
                };
                let name = format!("pup-react-{:02}", runner.index);
                if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, calls) {
                    if started == 0 {
                        // No event causes that.
                        errors.push((flight.done(), Passing::new(error).into()));
                        flight.stop();
                    }
                    break;
                }
            }
            let mut is_due = false;
            loop {
                if runner.is_pause_requested() || !runner.trust.holds() {
                    flight.land();
                }
                while let Some(order) = flight.begin() {
                    _ = orders.send(order);
                }
                // Calls that have begun go on while this is recorded.
                if std::mem::take(&mut is_due) && owed.done > owed.recorded && owed.done < events.len() {
                    match self.record_now(owed) {
                        Ok(()) => {}
                        Err(Unrecorded::Yet(_)) => flight.land(),
                        Err(Unrecorded::Ever(failure)) => {
                            owed.is_fenced = matches!(failure, Failure::Fenced);
                            flight.stop();
                        }
                    }
                }
                if !flight.is_in_flight() {
                    break;
                }
                select! {
                    recv(ended) -> outcome => {
                        for (index, took, outcome) in outcome.into_iter().chain(ended.try_iter()) {
                            self.observe(took, 1);
                            flight.ended(index, outcome.is_ok());
                            errors.extend(outcome.err().map(|error| (index, error)));
                        }
                    }
                    default(PAUSE_CHECK) => continue,
                }
                (owed.done, is_due) = (flight.done(), true);
            }
            drop(orders);
        });
        owed.done = flight.done();
        // Fewer events than before may have been tried.
        let last = events.last().map_or(i64::MAX, Event::global_position);
        self.done_beyond.retain(|position| *position > last);
        self.done_beyond.extend(flight.done_beyond());
        owed.error = errors.into_iter().find(|(index, _)| *index == owed.done).map(|(_, error)| error);
    }
}
