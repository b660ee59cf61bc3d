//! Named threads with one way to end: the stop signal.
//!
//! A crew is all threads of one worker. A thread that fails or panics stops the whole crew: the
//! first such failure is what `join` returns. Dropping the crew stops and joins it.

mod waker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::error::{Error, one_line, panic_message};
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
/// Only what runs within [`judged`](Self::judged) is judged. All else may take any time: a wait for
/// the server, for one of its locks or for a channel, and a user's handler. A restart of the process
/// would end none of these sooner. So code that was forgotten here can hide a defect, but cannot
/// get a healthy process killed.
#[derive(Debug, Clone)]
pub(crate) struct Pulse {
    origin: Instant,
    /// Milliseconds after `origin` at which the judged code began; [`NOT_JUDGED`] outside of it.
    since: Arc<AtomicU64>,
}

const NOT_JUDGED: u64 = u64::MAX;

impl Pulse {
    fn new() -> Self {
        Self { origin: Instant::now(), since: Arc::new(AtomicU64::new(NOT_JUDGED)) }
    }

    /// Executes code of the library that waits for nothing.
    pub(crate) fn judged<T>(&self, code: impl FnOnce() -> T) -> T {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(NOT_JUDGED);
        self.since.store(now, Ordering::Relaxed);
        // A panic leaves the mark, which does not matter: a thread that has ended is not judged.
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
}

impl Crew {
    pub(crate) fn new() -> Self {
        Self { stop: Stop::new(), roll: Arc::default() }
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
        let (stop, roll, own_name, own_pulse) = (self.stop.clone(), self.roll.clone(), name.clone(), pulse.clone());
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| body(&own_pulse))).unwrap_or_else(|payload| {
                    Err(Error::ThreadPanicked { thread: own_name.clone(), message: panic_message(&*payload) })
                });
                if let Err(error) = outcome {
                    log::error!("thread ended, worker stops: thread={own_name} error={}", one_line(&error));
                    let mut roll = roll.lock();
                    roll.failed.get_or_insert(own_name);
                    roll.first_error.get_or_insert(error);
                    drop(roll);
                    stop.raise();
                }
                drop(alive);
            })
            .map_err(|source| Error::Spawn { thread: name.clone(), source })?;
        self.roll.lock().members.push(Member { name, pulse, thread: Some(thread), ended });
        Ok(())
    }

    /// Waits until every thread has ended, at most `timeout`.
    pub(crate) fn join(&self, timeout: Option<Duration>) -> Result<(), Error> {
        let begun = Instant::now();
        let ended: Vec<Receiver<Never>> = self.roll.lock().members.iter().map(|member| member.ended.clone()).collect();
        for member in ended {
            // Disconnection means that the thread's body has ended; nothing is ever received.
            match timeout {
                Some(timeout) => _ = member.recv_timeout(timeout.saturating_sub(begun.elapsed())),
                None => _ = member.recv(),
            }
        }
        let mut roll = self.roll.lock();
        let running: Vec<&str> =
            roll.members.iter().filter(|member| !has_ended(member)).map(|member| member.name.as_str()).collect();
        if !running.is_empty() {
            return Err(Error::ShutdownTimeout { waited: begun.elapsed(), threads: running.join(", ") });
        }
        let threads: Vec<JoinHandle<()>> = roll.members.iter_mut().filter_map(|member| member.thread.take()).collect();
        let outcome = roll.first_error.take().map_or(Ok(()), Err);
        drop(roll);
        for thread in threads {
            // The body's panics are caught above, so there is nothing left to report.
            _ = thread.join();
        }
        outcome
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
    matches!(member.ended.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stops_the_crew_and_is_returned_by_join() {
        let crew = Crew::new();
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
    fn a_thread_is_judged_only_within_its_own_code() {
        let crew = Crew::new();
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
        let crew = Crew::new();
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
