//! Named threads, which all end at the stop signal.
//!
//! A crew is all threads of one worker. They begin together, when the crew's [`Gate`] is opened. A
//! thread that fails or panics stops the whole crew, and `join` returns the first such failure. The
//! failure is recorded before anything else is called that could fail, such as the application's
//! logger.

mod caught;
mod gate;
mod waker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, never, select};
use parking_lot::Mutex;

use crate::error::{Error, field, one_line};
pub(crate) use caught::{caught, safely};
use gate::Entry;
pub(crate) use gate::Gate;
pub(crate) use waker::Waker;

/// Nothing is ever sent on the stop channel; its disconnection is the signal.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Never {}

/// The stop signal: raised once, received by every thread that selects on [`Stop::heard`].
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    raised: Arc<AtomicBool>,
    sender: Arc<Mutex<Option<Sender<Never>>>>,
    receiver: Receiver<Never>,
}

impl Stop {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = bounded(0);
        Self { raised: Arc::default(), sender: Arc::new(Mutex::new(Some(sender))), receiver }
    }

    pub(crate) fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.sender.lock().take();
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Becomes ready (disconnected) when the signal is raised.
    pub(crate) fn heard(&self) -> &Receiver<Never> {
        &self.receiver
    }

    /// Waits for the signal, at most `timeout`. Returns whether it is raised.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        !matches!(self.receiver.recv_timeout(timeout), Err(crossbeam_channel::RecvTimeoutError::Timeout))
    }
}

/// How long the library's own code may run without a wait before `/livez` reports the thread as
/// stuck. Such code takes milliseconds.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(90);

/// Shows whether a thread is stuck in the library's own code.
///
/// Only code within [`judged`](Self::judged) is judged. Everything else may take any time: a wait
/// for the server, for one of its locks or for a channel, and a user's handler. A restart of the
/// process would end none of these sooner. So code that is missing from `judged` can hide a defect,
/// but cannot get a healthy process killed.
#[derive(Debug, Clone)]
pub(crate) struct Pulse {
    origin: Instant,
    /// Milliseconds after `origin` at which the judged code began; [`NOT_JUDGED`] outside of such
    /// code.
    since: Arc<AtomicU64>,
}

const NOT_JUDGED: u64 = u64::MAX;

impl Pulse {
    fn new() -> Self {
        Self { origin: Instant::now(), since: Arc::new(AtomicU64::new(NOT_JUDGED)) }
    }

    /// Executes code of the library that does not wait for anything.
    pub(crate) fn judged<T>(&self, code: impl FnOnce() -> T) -> T {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(NOT_JUDGED);
        self.since.store(now, Ordering::Relaxed);
        // After a panic, `since` stays set. That does not matter: a thread that has ended is not
        // judged.
        let outcome = code();
        self.since.store(NOT_JUDGED, Ordering::Relaxed);
        outcome
    }

    fn busy_for(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            NOT_JUDGED => Duration::ZERO,
            since => self.origin.elapsed().saturating_sub(Duration::from_millis(since)),
        }
    }
}

#[derive(Debug)]
struct Member {
    name: String,
    pulse: Pulse,
    thread: Option<JoinHandle<()>>,
    ended: Receiver<Never>,
}

#[derive(Debug, Default)]
struct Roll {
    members: Vec<Member>,
    first_error: Option<Error>,
    failed: Option<String>,
}

/// All threads of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Crew {
    stop: Stop,
    roll: Arc<Mutex<Roll>>,
    entry: Entry,
    /// Raised when callers should no longer wait for threads that still run.
    left_behind: Stop,
}

impl Crew {
    /// Creates a crew whose threads wait until the gate is opened.
    pub(crate) fn new() -> (Self, Gate) {
        let (gate, entry) = Gate::new();
        (Self { stop: Stop::new(), roll: Arc::default(), entry, left_behind: Stop::new() }, gate)
    }

    /// Creates a crew whose threads begin at once.
    #[cfg(test)]
    pub(crate) fn begun() -> Self {
        let (crew, gate) = Self::new();
        gate.open();
        crew
    }

    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Starts a thread. Names have at most 15 bytes, or the kernel truncates them.
    pub(crate) fn spawn(
        &self,
        name: impl Into<String>,
        body: impl FnOnce(&Pulse) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let name = name.into();
        debug_assert!(name.len() <= 15, "thread name {name} is longer than 15 bytes");
        let (alive, ended) = bounded::<Never>(0);
        let pulse = Pulse::new();
        let (crew, own_name, own_pulse) = (self.clone(), name.clone(), pulse.clone());
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let outcome = caught(|| {
                    // Until the gate is opened, the worker may wait for its server for any time.
                    if crew.entry.wait() { body(&own_pulse) } else { Ok(()) }
                });
                let failed = |message| Err(Error::ThreadPanicked { thread: own_name.clone(), message });
                if let Err(error) = outcome.unwrap_or_else(failed) {
                    crew.failed(&own_name, error);
                }
                drop(alive);
            })
            .map_err(|source| Error::Spawn { thread: name.clone(), source })?;
        self.roll.lock().members.push(Member { name, pulse, thread: Some(thread), ended });
        Ok(())
    }

    /// Stops the crew because a thread has failed, and then logs the failure. It logs last because
    /// the logger belongs to the application and may panic.
    fn failed(&self, thread: &str, error: Error) {
        // Formatted first, because the error is moved below.
        let shown = caught(|| one_line(&error)).unwrap_or_else(|panic| format!("an error that panicked: {panic}"));
        {
            let mut roll = self.roll.lock();
            roll.failed.get_or_insert_with(|| thread.to_owned());
            roll.first_error.get_or_insert(error);
        }
        self.stop.raise();
        safely(|| {
            log::error!(
                "thread ended, worker stops: thread={thread} error={shown}",
                thread = field(&thread),
                shown = field(&shown)
            );
        });
    }

    /// Waits until every thread has ended or is [left behind](Self::leave_behind), at most
    /// `timeout`. On a thread of the crew, it returns an error instead of waiting.
    pub(crate) fn join(&self, timeout: Option<Duration>) -> Result<(), Error> {
        let begun = Instant::now();
        if let Some(thread) = self.own_thread() {
            return Err(Error::OwnThread { thread });
        }
        let running = self.running_after(timeout);
        if !running.is_empty() {
            return Err(Error::ShutdownTimeout { waited: begun.elapsed(), threads: running.join(", ") });
        }
        let mut roll = self.roll.lock();
        let threads: Vec<JoinHandle<()>> = roll.members.iter_mut().filter_map(|member| member.thread.take()).collect();
        let outcome = roll.first_error.take().map_or(Ok(()), Err);
        drop(roll);
        for thread in threads {
            // The thread has caught the panics of its body, so there is nothing left to report.
            _ = thread.join();
        }
        outcome
    }

    /// Waits as [`join`](Self::join) does, and returns the names of the threads that still run.
    pub(crate) fn running_after(&self, timeout: Option<Duration>) -> Vec<String> {
        let deadline = timeout.map_or_else(never, after);
        let members: Vec<(String, Receiver<Never>)> =
            self.roll.lock().members.iter().map(|member| (member.name.clone(), member.ended.clone())).collect();
        for (_, ended) in &members {
            // Disconnection means that the thread's body has ended; nothing is ever received.
            select! {
                recv(ended) -> _ => {}
                recv(self.left_behind.heard()) -> _ => break,
                recv(deadline) -> _ => break,
            }
        }
        let running = members.into_iter().filter(|(_, ended)| !is_disconnected(ended));
        running.map(|(name, _)| name).collect()
    }

    /// Ends the wait of every caller that waits for threads that still run.
    pub(crate) fn leave_behind(&self) {
        self.left_behind.raise();
    }

    /// The name of the calling thread, if it is one of the crew.
    fn own_thread(&self) -> Option<String> {
        let own = std::thread::current().id();
        let roll = self.roll.lock();
        let is_own = |member: &&Member| member.thread.as_ref().is_some_and(|thread| thread.thread().id() == own);
        roll.members.iter().find(is_own).map(|member| member.name.clone())
    }

    /// The name of a thread that failed, or that is stuck in the library's own code.
    pub(crate) fn stuck(&self) -> Option<String> {
        let roll = self.roll.lock();
        if roll.failed.is_some() {
            return roll.failed.clone();
        }
        let stuck = roll.members.iter().find(|member| !has_ended(member) && member.pulse.busy_for() > STUCK_AFTER);
        stuck.map(|member| member.name.clone())
    }
}

fn has_ended(member: &Member) -> bool {
    is_disconnected(&member.ended)
}

fn is_disconnected(ended: &Receiver<Never>) -> bool {
    matches!(ended.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
}

/// Starts a thread that belongs to no crew, because it may have to be left behind. Names have at
/// most 15 bytes.
pub(crate) fn spawn_apart(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    spawned.map(drop).map_err(|source| Error::Spawn { thread: name.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stops_the_crew_and_is_returned_by_join() {
        let crew = Crew::begun();
        let stop = crew.stop().clone();
        crew.spawn("waits", move |_| {
            stop.wait(Duration::from_secs(10));
            Ok(())
        })
        .unwrap();
        crew.spawn("panics", |_| panic!("the tests say so")).unwrap();
        let error = crew.join(Some(Duration::from_secs(5))).unwrap_err();
        assert!(
            matches!(&error, Error::ThreadPanicked { thread, message } if thread == "panics" && message == "the tests say so")
        );
        assert_eq!(crew.stuck().as_deref(), Some("panics"));
    }

    #[test]
    fn join_does_not_wait_for_threads_that_are_left_behind() {
        let crew = Crew::begun();
        let (gate, closed) = bounded::<Never>(0);
        crew.spawn("hangs", move |_| {
            _ = closed.recv();
            Ok(())
        })
        .unwrap();
        crew.leave_behind();
        let error = crew.join(None).unwrap_err();
        assert!(matches!(&error, Error::ShutdownTimeout { threads, .. } if threads == "hangs"));
        drop(gate);
    }

    #[test]
    fn threads_whose_gate_is_dropped_end_without_having_begun() {
        let (crew, gate) = Crew::new();
        crew.spawn("waits", |_| panic!("the gate is closed")).unwrap();
        assert!(crew.join(Some(Duration::from_millis(10))).is_err(), "it waits at the gate");
        drop(gate);
        crew.join(Some(Duration::from_secs(5))).unwrap();
    }

    #[test]
    fn a_thread_is_judged_only_within_its_own_code() {
        let crew = Crew::begun();
        let (entered, is_busy) = bounded::<()>(0);
        let (go_on, told) = bounded::<()>(0);
        crew.spawn("works", move |pulse| {
            entered.send(()).unwrap();
            told.recv().unwrap();
            pulse.judged(|| {
                entered.send(()).unwrap();
                told.recv().unwrap();
            });
            entered.send(()).unwrap();
            told.recv().unwrap();
            Ok(())
        })
        .unwrap();
        // As if all of this had begun long ago.
        let make_old = || {
            let mut roll = crew.roll.lock();
            let pulse = &mut roll.members[0].pulse;
            pulse.origin = pulse.origin.checked_sub(STUCK_AFTER + Duration::from_secs(1)).unwrap();
        };
        is_busy.recv().unwrap();
        make_old();
        assert_eq!(crew.stuck(), None, "it waits");
        go_on.send(()).unwrap();
        is_busy.recv().unwrap();
        assert_eq!(crew.stuck(), Some("works".into()), "it has run for long without a wait");
        go_on.send(()).unwrap();
        is_busy.recv().unwrap();
        assert_eq!(crew.stuck(), None, "it waits again");
        go_on.send(()).unwrap();
        crew.join(Some(Duration::from_secs(5))).unwrap();
    }

    #[test]
    fn join_names_the_threads_that_go_on() {
        let crew = Crew::begun();
        let stop = crew.stop().clone();
        crew.spawn("goes-on", move |_| {
            stop.wait(Duration::from_secs(10));
            Ok(())
        })
        .unwrap();
        let error = crew.join(Some(Duration::from_millis(10))).unwrap_err();
        assert!(matches!(&error, Error::ShutdownTimeout { threads, .. } if threads == "goes-on"));
        crew.stop().raise();
        crew.join(Some(Duration::from_secs(5))).unwrap();
    }
}
