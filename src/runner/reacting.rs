//! Calls a reaction, and records what it has done.
//!
//! While a reaction runs, the runner has no connection and nothing loaded. What it needs afterwards
//! is in the [portion](Portion): the checkpoint, and the events. What the reaction has done and the
//! database does not know yet is *owed*, until it is recorded or another worker owns the
//! checkpoint. It is kept while the server is away, so that an outage repeats no effect.
//!
//! The record is made on another connection than the one on which the events were read. See
//! [`fence::follow`] for why that is right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select};

use super::connection::{Connection, Kept};
use super::failure::Failure;
use super::flight::Flight;
use super::loaded::Loaded;
use super::pace::Pace;
use super::replay::{self, Replayed};
use super::step::Step;
use super::work::Work;
use crate::error::BoxError;
use crate::event::Event;
use crate::feed::{Mark, Standing};
use crate::projection::{self, Call, Reacts, Work as Handling};
use crate::store::events::Batch;
use crate::store::fence::{self, Checkpoint, EventMark, Followed, Owner, Progress};
use crate::store::parked::{Parked, Waiting};
use crate::store::session::Session;

/// How often a runner with calls in flight checks whether it has to pause.
const PAUSE_CHECK: Duration = Duration::from_millis(20);

/// Events for a reaction, and what has to be known to record that they are handled.
pub(super) struct Portion {
    pub(super) row: Checkpoint,
    pub(super) owner: Owner,
    pub(super) counted_from: i64,
    pub(super) is_replay: bool,
    pub(super) events: Arc<[Event]>,
    pub(super) origin: Origin,
    pub(super) mark: Mark,
    pub(super) pace: Option<Pace>,
}

/// Where the events of a portion come from.
pub(super) enum Origin {
    /// They are first in the range that follows on the row, up to `end`, and these come after them.
    Range { rest: Vec<Event>, end: i64 },
    /// They are the first of those that wait because their aggregate is parked.
    Parked { parked: Parked, waiting: Vec<Waiting> },
}

/// What a reaction has done with a portion.
pub(super) struct Owed {
    portion: Portion,
    /// How many events from the front it has handled.
    done: usize,
    /// How many of these are recorded.
    recorded: usize,
    /// The error at the next event.
    error: Option<BoxError>,
    /// Whether the row was found to be another worker's.
    is_fenced: bool,
}

/// Why something could not be recorded.
enum Unrecorded {
    /// Another attempt may succeed.
    Yet(Failure),
    /// It is not to be recorded any more.
    Ever(Failure),
}

impl Unrecorded {
    fn yet(error: postgres::Error) -> Self {
        Self::Yet(Failure::outside(error))
    }
}

impl Portion {
    fn progress(&self, from: usize, to: usize, end: i64) -> Option<Progress> {
        let done = self.events.get(from..to)?;
        let last = done.last().map(|last| EventMark { position: last.global_position(), id: last.event_id() })?;
        let counted = done.iter().filter(|event| event.global_position() > self.counted_from).count();
        let handled = i64::try_from(counted).unwrap_or(i64::MAX);
        Some(Progress { to: if to == self.events.len() { end } else { last.position }, last, handled })
    }

    /// Up to which position the row moves once all of these events are handled.
    fn end(&self) -> i64 {
        match &self.origin {
            Origin::Range { rest, end } if rest.is_empty() => *end,
            _ => self.events.last().map_or(self.row.position, Event::global_position),
        }
    }
}

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
                        errors.push((0, format!("cannot start a thread: {error}").into()));
                        flight.stop();
                    }
                    break;
                }
            }
            loop {
                if runner.is_pause_requested() || !runner.trust.holds() {
                    flight.land();
                }
                while let Some(order) = flight.begin() {
                    _ = orders.send(order);
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
                owed.done = flight.done();
                if owed.done > owed.recorded && owed.done < events.len() {
                    match self.record_now(owed) {
                        Ok(()) => {}
                        Err(Unrecorded::Yet(_)) => flight.land(),
                        Err(Unrecorded::Ever(failure)) => {
                            owed.is_fenced = matches!(failure, Failure::Fenced);
                            flight.stop();
                        }
                    }
                }
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

    /// Records on a connection of its own what is done so far.
    fn record_now(&mut self, owed: &mut Owed) -> Result<(), Unrecorded> {
        let mut connection = self.open().map_err(Unrecorded::Yet)?;
        self.record(owed, &mut connection.session)
    }

    fn open(&self) -> Result<Connection, Failure> {
        Connection::open(&self.runner.context, &self.runner.feed, &self.runner.pool)
    }

    /// Records what is owed.
    fn record(&mut self, owed: &mut Owed, session: &mut Session) -> Result<(), Unrecorded> {
        self.try_to_record(owed, session).inspect_err(|unrecorded| {
            if let Unrecorded::Yet(failure) = unrecorded
                && failure.condemns()
            {
                session.condemn();
            }
        })
    }

    fn try_to_record(&mut self, owed: &mut Owed, session: &mut Session) -> Result<(), Unrecorded> {
        let Owed { portion, done, recorded, .. } = owed;
        if *done == *recorded {
            return Ok(());
        }
        let begun = Instant::now();
        let names = self.names;
        let (before, events) = (portion.row.token, *done - *recorded);
        let Some(progress) = portion.progress(*recorded, *done, portion.end()) else { return Ok(()) };
        match &portion.origin {
            Origin::Range { .. } => {
                let row = &portion.row;
                let followed = session.run(|client| fence::follow(client, names, row, portion.owner, progress));
                match followed.map_err(Unrecorded::yet)? {
                    Followed::Moved => {}
                    Followed::Fenced => return Err(Unrecorded::Ever(Failure::Fenced)),
                    Followed::Missing => return Err(Unrecorded::Ever(missing(progress.last))),
                }
                portion.row.position = progress.to;
                *recorded = *done;
                self.journal.committed(events, self.trouble.failed_attempts());
                self.trouble.committed(progress.to);
                self.runner.context.goal.stored(progress.to);
            }
            Origin::Parked { parked, waiting } => {
                let next = waiting.get(*done);
                let (row, owner) = (&portion.row, portion.owner);
                let noted = self.runner.record_replayed(session, row, owner, parked, (progress.handled, next));
                let after = match noted.map_err(Unrecorded::Yet)? {
                    Replayed::Noted(token) => token,
                    Replayed::Fenced => return Err(Unrecorded::Ever(Failure::Fenced)),
                    Replayed::Changed => return Err(Unrecorded::Ever(replay::changed())),
                };
                *recorded = *done;
                let all = self.replays.committed(events, next.map(|next| next.event.position));
                self.journal.replayed(events);
                if next.is_none() {
                    self.trouble.renewed(before, after);
                    self.trouble.released();
                    self.journal.replay_done(&parked.stream, all);
                }
            }
        }
        self.runner.metrics.commit_duration.observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Records what is owed, and loads the checkpoints again. Returns the failure of the reaction, if
    /// it has failed.
    pub(super) fn settle(&mut self) -> Result<Option<Step>, Failure> {
        let Some(mut owed) = self.owed.take() else { return Ok(None) };
        if owed.is_fenced {
            return Err(Failure::Fenced);
        }
        let settled = self.open().map_err(Unrecorded::Yet).and_then(|mut connection| {
            let recorded = self.record(&mut owed, &mut connection.session);
            recorded.map(|()| connection)
        });
        let connection = match settled {
            Ok(connection) => connection,
            Err(Unrecorded::Yet(failure)) => {
                self.owed = Some(owed);
                return Err(failure);
            }
            Err(Unrecorded::Ever(failure)) => return Err(failure),
        };
        let Owed { portion, done, error, .. } = owed;
        let mut loaded =
            self.runner.load(self.owner, &mut Some(Kept::new(connection)), &self.trouble, &self.journal)?;
        let row = loaded.rows.first().map(|row| (row.stored.token, row.stored.position));
        let is_followed = row == Some((portion.row.token, portion.row.position));
        let is_current = matches!(self.runner.feed.standing_of(portion.mark), Standing::Current(_));
        if is_current {
            // The head that was found before the call is still valid.
            loaded.keep_mark(portion.mark);
        }
        loaded.pace = portion.pace.map(|mut pace| {
            pace.handled(done, Instant::now());
            pace
        });
        let failed_at = portion.events.get(done).cloned();
        if let (Some(error), Some(event)) = (error, failed_at) {
            return self.reaction_failed(loaded, &portion, event, &*error);
        }
        if let Origin::Range { rest, end } = portion.origin
            && is_followed
            && is_current
        {
            let left: Vec<Event> = portion.events.iter().skip(done).cloned().chain(rest).collect();
            loaded.unread =
                Some(Batch { events: left, keys: Vec::new(), end }).filter(|left| !left.events.is_empty()).map(Ok);
        }
        self.loaded = Some(loaded);
        Ok(Some(Step::Again))
    }

    fn reaction_failed(
        &mut self,
        mut loaded: Loaded,
        portion: &Portion,
        event: Event,
        error: &(dyn std::error::Error + 'static),
    ) -> Result<Option<Step>, Failure> {
        let failure = Failure::of_handler(error, std::slice::from_ref(&event), 0);
        match &portion.origin {
            Origin::Range { .. } => {
                loaded.attempted = Some(event);
                self.loaded = Some(loaded);
                Err(failure)
            }
            Origin::Parked { parked, waiting } => {
                let loaded = self.loaded.insert(loaded);
                let (replays, journal) = (&mut self.replays, &mut self.journal);
                self.runner.replay_failed(loaded, replays, journal, parked, waiting.first(), failure).map(Some)
            }
        }
    }

    /// Tries once more to record what is owed, before the runner stops.
    pub(super) fn settle_at_end(&mut self) {
        if let Some(mut owed) = self.owed.take() {
            _ = self.record_now(&mut owed);
        }
    }
}

/// After a failover, the server may lack events that were handled.
fn missing(last: EventMark) -> Failure {
    let EventMark { position, id } = last;
    let problem = format!(
        "the event at global position {position} (event {id}) was handled, and is not there any more, as after a failover to a server \
         that had not received it: what follows on the checkpoint is handled again"
    );
    Failure::Transient(problem.into())
}

/// The positions of events that are done behind one that is not.
pub(super) type DoneBeyond = BTreeSet<i64>;
