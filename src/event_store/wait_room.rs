//! Where callers wait for projections: they ask the server, or wait for the one that does.
//!
//! *Invariant:* no lock is held while a statement is executed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use postgres::Client;

use super::wait_error::WaitError;
use super::wait_group::{Asked, Group, Number, Step, Verdict, Waiter};
use crate::store::Names;
use crate::store::waiting::{self, Question, Standing, Target};
use crate::threads::Waker;

/// The longest time for which a caller waits: a month.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3_600);

/// What a caller wants to have processed, by which projections, and how long it waits.
#[derive(Debug, Clone)]
pub(crate) struct Goal<'a> {
    pub(crate) projections: &'a [&'a str],
    pub(crate) target: Target,
    pub(crate) timeout: Duration,
}

/// The callers of one event store, in groups: those whose clients are connected to the same
/// database of the same server.
#[derive(Debug, Default)]
pub(super) struct Room {
    groups: Mutex<HashMap<String, Group>>,
    numbers: AtomicU64,
}

impl Room {
    /// Waits on this thread until the goal is reached. The caller itself asks once, which tells to
    /// which group it belongs.
    pub(super) fn wait(&self, client: &mut Client, names: &Names, goal: &Goal<'_>) -> Verdict {
        let begun = Instant::now();
        let question = |name: &&str| Question { projection: (*name).to_owned(), target: goal.target.clone() };
        let questions: Vec<Arc<Question>> = goal.projections.iter().map(question).map(Arc::new).collect();
        let (place, standings) = ask(client, names, &questions)?;
        let (waker, woken) = Waker::new();
        let answered = questions.into_iter().zip(standings).collect();
        let moments = (Instant::now(), begun + goal.timeout.min(LONGEST));
        let mut waiter = Waiter::new(answered, waker, goal.timeout, moments);
        match waiter.verdict() {
            Some(verdict) => verdict,
            None => Seat::take(self, place, waiter).wait(client, names, &woken),
        }
    }
}

/// The place of one caller. Dropping it hands the polling over.
struct Seat<'r> {
    room: &'r Room,
    place: String,
    number: Number,
}

impl<'r> Seat<'r> {
    fn take(room: &'r Room, place: String, waiter: Waiter) -> Self {
        let number = room.numbers.fetch_add(1, Ordering::Relaxed);
        room.groups.lock().entry(place.clone()).or_default().join(number, waiter);
        Self { room, place, number }
    }

    fn wait(&self, client: &mut Client, names: &Names, woken: &Receiver<()>) -> Verdict {
        loop {
            let step = self.group(|group| group.step(self.number, Instant::now()));
            match step {
                Step::Return(verdict) => return verdict,
                Step::WaitUntil(moment) => _ = woken.recv_deadline(moment),
                Step::Poll(asked) => self.poll(client, names, asked)?,
            }
        }
    }

    fn poll(&self, client: &mut Client, names: &Names, asked: Vec<Asked>) -> Verdict {
        let begun = Instant::now();
        let questions: Vec<Arc<Question>> = asked.iter().map(|(_, question)| question.clone()).collect();
        let (_, standings) = ask(client, names, &questions)?;
        let answers = asked.into_iter().zip(standings).collect();
        self.group(|group| group.answered((begun, Instant::now()), answers));
        Ok(())
    }

    fn group<T>(&self, act: impl FnOnce(&mut Group) -> T) -> T {
        act(self.room.groups.lock().entry(self.place.clone()).or_default())
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut groups = self.room.groups.lock();
        if let Some(group) = groups.get_mut(&self.place) {
            group.leave(self.number);
            if group.is_empty() {
                groups.remove(&self.place);
            }
        }
    }
}

fn ask(client: &mut Client, names: &Names, questions: &[Arc<Question>]) -> Result<(String, Vec<Standing>), WaitError> {
    let questions: Vec<&Question> = questions.iter().map(|question| &**question).collect();
    let answers = waiting::ask(client, names, &questions).map_err(WaitError::of_statement)?;
    Ok((answers.place, answers.standings))
}
