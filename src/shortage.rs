//! Which threads of a worker want a connection and cannot get one.
//!
//! A worker without all its connections holds a partition that it does not process. So it gives the
//! partition back: see [`coordinator`](crate::coordinator).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Error;

/// A thread that has not tried for this long no longer wants a connection. Threads that want one
/// try more often.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// The failed attempts of all threads of a worker. Clones share the same attempts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shortage {
    threads: Arc<Mutex<BTreeMap<String, Failing>>>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    /// When the last attempt ended; `None` while an attempt is in progress. It may take long: a
    /// pooler may accept a connection and let its first statement wait.
    ended: Option<Instant>,
    problem: String,
}

impl Shortage {
    /// Executes an attempt of this thread to get a connection, and records its outcome.
    pub(crate) fn note<T>(&self, attempt: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let thread = thread::current().name().unwrap_or_default().to_owned();
        self.begin(&thread);
        let outcome = attempt();
        let mut threads = self.threads.lock();
        match &outcome {
            Ok(_) => _ = threads.remove(&thread),
            Err(error) => {
                if let Some(failing) = threads.get_mut(&thread) {
                    (failing.ended, failing.problem) = (Some(Instant::now()), error.with_causes());
                }
            }
        }
        outcome
    }

    /// Forgets the failed attempts of threads that have no attempt in progress, because connections
    /// are available now.
    pub(crate) fn end(&self) {
        self.threads.lock().retain(|_, failing| failing.ended.is_none());
    }

    fn begin(&self, thread: &str) {
        let now = Instant::now();
        let mut threads = self.threads.lock();
        threads.retain(|name, failing| name != thread || !failing.is_forgotten(now));
        let first = || Failing { since: now, ended: None, problem: "the server has not answered yet".to_owned() };
        threads.entry(thread.to_owned()).or_insert_with(first).ended = None;
    }

    /// Why this thread has no connection, if it wants one.
    pub(crate) fn of(&self, thread: &str) -> Option<String> {
        let now = Instant::now();
        let threads = self.threads.lock();
        threads.get(thread).filter(|failing| !failing.is_forgotten(now)).map(|failing| failing.problem.clone())
    }

    /// For how long the thread that has waited longest has been without a connection, and why.
    pub(crate) fn longest(&self) -> Option<(Duration, String)> {
        let now = Instant::now();
        let threads = self.threads.lock();
        let failing =
            threads.values().filter(|failing| !failing.is_forgotten(now)).min_by_key(|failing| failing.since)?;
        Some((now.saturating_duration_since(failing.since), failing.problem.clone()))
    }
}

impl Failing {
    fn is_forgotten(&self, now: Instant) -> bool {
        self.ended.is_some_and(|ended| now.saturating_duration_since(ended) > FORGOTTEN_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(target: &str) -> Result<(), Error> {
        Err(Error::ConnectTimeout { target: target.into(), waited: Duration::from_secs(1) })
    }

    fn on_a_thread<T: Send>(name: &str, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            thread::Builder::new().name(name.into()).spawn_scoped(scope, body).unwrap().join().unwrap()
        })
    }

    #[test]
    fn shortage_lasts_until_that_thread_has_a_connection() {
        let shortage = Shortage::default();
        assert!(shortage.longest().is_none());
        on_a_thread("a", || shortage.note(|| failed("a")).unwrap_err());
        on_a_thread("b", || shortage.note(|| failed("b")).unwrap_err());
        on_a_thread("c", || shortage.note(|| Ok(())).unwrap());
        assert!(shortage.of("b").unwrap().contains("to b:") && shortage.of("c").is_none(), "{shortage:?}");
        assert!(shortage.longest().unwrap().1.contains("to a:"), "{shortage:?}");
        on_a_thread("a", || shortage.note(|| Ok(())).unwrap());
        assert!(shortage.longest().unwrap().1.contains("to b:"), "{shortage:?}");
        on_a_thread("b", || shortage.note(|| Ok(())).unwrap());
        assert!(shortage.longest().is_none());
    }

    #[test]
    fn thread_that_no_longer_tries_is_forgotten() {
        let shortage = Shortage::default();
        shortage.note(|| failed("it")).unwrap_err();
        let long_ago = Instant::now().checked_sub(FORGOTTEN_AFTER + Duration::from_secs(1)).unwrap();
        for failing in shortage.threads.lock().values_mut() {
            (failing.since, failing.ended) = (long_ago, Some(long_ago));
        }
        assert!(shortage.longest().is_none());
        shortage.note(|| failed("it")).unwrap_err();
        assert!(shortage.longest().unwrap().0 < FORGOTTEN_AFTER, "another shortage begins");
    }

    #[test]
    fn attempt_that_lasts_is_a_shortage() {
        let shortage = Shortage::default();
        shortage.note(|| failed("it")).unwrap_err();
        let long_ago = Instant::now().checked_sub(2 * FORGOTTEN_AFTER).unwrap();
        let since = |shortage: &Shortage| shortage.longest().map(|(lasts, _)| lasts >= 2 * FORGOTTEN_AFTER);
        shortage
            .note(|| {
                shortage.threads.lock().values_mut().for_each(|failing| failing.since = long_ago);
                assert_eq!(since(&shortage), Some(true), "it is not forgotten meanwhile");
                Ok(())
            })
            .unwrap();
        assert!(shortage.longest().is_none());
    }
}
