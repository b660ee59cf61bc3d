//! Reaches the database before the worker has registered, on a thread of its own and with retries.
//!
//! The database client refuses to block a thread of an asynchronous runtime, and panics when it is
//! dropped there. So the caller's thread never holds a connection. It only waits for a thread of
//! the library, which it can leave behind.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use crate::backoff::Backoff;
use crate::error::{Error, field};
use crate::threads::{Stop, caught};

/// The outcome of work on another thread, to be received once.
pub(super) type Outcome<T> = Receiver<Result<T, Error>>;

/// Executes `work` on a thread of its own. A panic is returned as an error. What `work` owns is
/// dropped on that thread.
pub(super) fn elsewhere<T: Send + 'static>(
    thread: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<Outcome<T>, Error> {
    let (sender, outcome) = bounded(1);
    let panicked = {
        let thread = thread.to_owned();
        move |message| Err(Error::ThreadPanicked { thread, message })
    };
    std::thread::Builder::new()
        .name(thread.to_owned())
        .spawn(move || {
            // Fails if the caller no longer waits.
            _ = sender.send(caught(work).unwrap_or_else(panicked));
        })
        .map_err(|source| Error::Spawn { thread: thread.to_owned(), source })?;
    Ok(outcome)
}

/// Waits for the outcome.
pub(super) fn settled<T>(outcome: &Outcome<T>) -> Result<T, Error> {
    outcome.recv().unwrap_or_else(|_| {
        Err(Error::ThreadPanicked { thread: "pup-start".to_owned(), message: "it ended without an outcome".to_owned() })
    })
}

/// Executes `attempt`. While the server is away, it retries until `wait` is over or the stop signal
/// is raised.
pub(super) fn once_reached<T>(
    wait: Duration,
    stop: &Stop,
    mut attempt: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let begun = Instant::now();
    let mut backoff = Backoff::for_connections();
    loop {
        let outcome = attempt();
        let left = wait.saturating_sub(begun.elapsed());
        match outcome {
            Err(error) if error.is_away() && !left.is_zero() => {
                if backoff.is_worth_logging() {
                    log::warn!(
                        "database is away, waiting for it: at_most={left:?} error={error}",
                        error = field(&error)
                    );
                }
                if stop.wait(backoff.next_delay().min(left)) {
                    return Err(error);
                }
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn away() -> Error {
        Error::ConnectTimeout { target: "here".into(), waited: LONG }
    }

    #[test]
    fn retries_last_only_while_the_server_is_away() {
        let stop = Stop::new();
        let mut failures = 3;
        let mut attempt = || {
            failures -= 1;
            if failures > 0 { Err(away()) } else { Ok(failures) }
        };
        assert_eq!(once_reached(LONG, &stop, &mut attempt).unwrap(), 0);

        let mut attempts = 0;
        let refused = || {
            attempts += 1;
            Err::<(), _>(Error::Schema { problem: "no table".into() })
        };
        assert!(matches!(once_reached(LONG, &stop, refused), Err(Error::Schema { .. })));
        assert_eq!(attempts, 1, "what waiting does not change is said at once");
    }

    #[test]
    fn retries_end_when_the_time_is_over_or_a_stop_is_heard() {
        let stop = Stop::new();
        let mut attempts = 0;
        let mut attempt = || {
            attempts += 1;
            Err::<(), _>(away())
        };
        assert!(once_reached(Duration::ZERO, &stop, &mut attempt).unwrap_err().is_away());
        stop.raise();
        assert!(once_reached(LONG, &stop, &mut attempt).unwrap_err().is_away());
        assert_eq!(attempts, 2);
    }

    #[test]
    fn a_panic_elsewhere_is_an_error() {
        let outcome = elsewhere("pup-test", || -> Result<(), Error> { panic!("the tests say so") }).unwrap();
        let error = settled(&outcome).unwrap_err();
        assert!(matches!(&error, Error::ThreadPanicked { thread, .. } if thread == "pup-test"), "{error:?}");
    }
}
