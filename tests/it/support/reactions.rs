//! Reactions whose calls run code of a test, and what they have done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Builder, Call, Event, Handle, Options, Reaction, StartAt};
use uuid::Uuid;

use super::eventually;

const SOON: Duration = Duration::from_secs(30);

/// An event that was handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) position: i64,
    pub(crate) id: Uuid,
    pub(crate) aggregate: String,
    pub(crate) version: i64,
    pub(crate) is_replay: bool,
}

/// The effects of all reactions that share it, in their order.
#[derive(Clone, Default)]
pub(crate) struct Effects(Arc<Mutex<Vec<Effect>>>);

impl Effects {
    fn note(&self, call: &Call<'_>, events: &[Event]) {
        self.0.lock().extend(events.iter().map(|event| Effect {
            position: event.global_position(),
            id: event.event_id(),
            aggregate: event.aggregate_id().to_owned(),
            version: event.aggregate_version(),
            is_replay: call.is_replay(),
        }));
    }

    pub(crate) fn all(&self) -> Vec<Effect> {
        self.0.lock().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }

    pub(crate) fn positions(&self) -> Vec<i64> {
        self.0.lock().iter().map(|effect| effect.position).collect()
    }

    #[track_caller]
    pub(crate) fn await_count(&self, count: usize) {
        eventually("the effects are there", SOON, || (self.count() >= count).then_some(()));
    }

    /// Checks that each event had its effect once, and those of each aggregate in order.
    #[track_caller]
    pub(crate) fn assert_once_each(&self, client: &mut Client) {
        let rows = client.query("SELECT global_position FROM events ORDER BY 1", &[]).unwrap();
        let expected: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        let mut positions = self.positions();
        positions.sort_unstable();
        assert_eq!(positions, expected, "one effect for each event");
        self.assert_in_order();
    }

    /// Checks that no later event of an aggregate had its first effect before an earlier one.
    #[track_caller]
    pub(crate) fn assert_in_order(&self) {
        let mut versions = BTreeMap::<String, Vec<i64>>::new();
        for Effect { aggregate, version, .. } in self.all() {
            let versions = versions.entry(aggregate).or_default();
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        for (aggregate, versions) in versions {
            assert!(versions.is_sorted(), "{aggregate}: {versions:?}");
        }
    }
}

type Code = dyn Fn(&Call<'_>, &[Event]) -> Result<usize, BoxError> + Send + Sync;

/// A reaction. Its code returns how many events it has handled, and these are noted as effects.
pub(crate) struct Reacting {
    name: &'static str,
    start_at: StartAt,
    options: Options,
    effects: Effects,
    code: Box<Code>,
}

impl Reacting {
    /// Starts at the beginning, unlike reactions by default.
    pub(crate) fn named(
        name: &'static str,
        effects: &Effects,
        code: impl Fn(&Call<'_>, &[Event]) -> Result<usize, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let (options, effects, code) = (Options::default(), effects.clone(), Box::new(code));
        Self { name, start_at: StartAt::Beginning, options, effects, code }
    }

    /// Handles everything at once.
    pub(crate) fn simple(name: &'static str, effects: &Effects) -> Self {
        Self::named(name, effects, |_, events| Ok(events.len()))
    }

    pub(crate) fn start_at(self, start_at: StartAt) -> Self {
        Self { start_at, ..self }
    }

    pub(crate) fn options(self, options: Options) -> Self {
        Self { options, ..self }
    }
}

impl Reaction for Reacting {
    fn name(&self) -> &str {
        self.name
    }

    fn options(&self) -> Options {
        self.options.clone()
    }

    fn start_at(&self) -> StartAt {
        self.start_at
    }

    fn react(&self, call: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let done = (self.code)(call, events)?;
        self.effects.note(call, events.get(..done).unwrap_or_default());
        Ok(done)
    }
}

/// Migrates, and starts a worker with this reaction.
pub(crate) fn start_reaction(builder: Builder, reaction: Reacting) -> Handle {
    let orchestrator = builder.reaction(reaction).build().unwrap();
    orchestrator.migrate().unwrap();
    orchestrator.start().unwrap()
}

/// A call that hangs until the test releases it.
#[derive(Clone)]
pub(crate) struct Gate {
    enter: Sender<()>,
    released: Receiver<()>,
}

/// The test's side of a gate.
pub(crate) struct Keeper {
    entered: Receiver<()>,
    release: Sender<()>,
}

pub(crate) fn gate() -> (Gate, Keeper) {
    let (enter, entered) = bounded(0);
    let (release, released) = bounded(0);
    (Gate { enter, released }, Keeper { entered, release })
}

impl Gate {
    /// Waits until the test releases the call.
    pub(crate) fn pass(&self) -> Result<(), BoxError> {
        self.enter.send_timeout((), SOON)?;
        Ok(self.released.recv_timeout(SOON)?)
    }
}

impl Keeper {
    /// Waits until a call hangs.
    #[track_caller]
    pub(crate) fn await_call(&self) {
        self.entered.recv_timeout(SOON).unwrap();
    }

    #[track_caller]
    pub(crate) fn release(&self) {
        self.release.send_timeout((), SOON).unwrap();
    }

    /// Whether another call hangs now.
    pub(crate) fn has_another(&self) -> bool {
        self.entered.try_recv().is_ok()
    }
}

/// Lets so much time pass.
pub(crate) fn pass_time(time: Duration) {
    crossbeam_channel::never::<()>().recv_timeout(time).unwrap_err();
}
