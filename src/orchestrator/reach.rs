//! Reaches the database before the worker has threads: on a thread of its own, with retries.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::error::{Error, panic_message};

/// Executes `attempt`. While the server is away it retries for up to `wait`, after a pause each
/// time. `pause` returns false if there is no reason to continue.
///
/// The database client refuses to block a thread that belongs to an asynchronous runtime. So this
/// function blocks a thread of its own, and the caller only waits for that.
pub(super) fn once_reached<T: Send>(
    thread: &str,
    wait: Duration,
    pause: impl FnMut(Duration) -> bool + Send,
    attempt: impl FnMut() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let work = std::thread::Builder::new()
            .name(thread.to_owned())
            .spawn_scoped(scope, move || patiently(wait, pause, attempt))
            .map_err(|source| Error::Spawn { thread: thread.to_owned(), source })?;
        work.join().unwrap_or_else(|payload| {
            Err(Error::ThreadPanicked { thread: thread.to_owned(), message: panic_message(&*payload) })
        })
    })
}

fn patiently<T>(
    wait: Duration,
    mut pause: impl FnMut(Duration) -> bool,
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
                    log::warn!("the database is away, waited for: at_most={left:?} error={error}");
                }
                if !pause(backoff.next_delay().min(left)) {
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
        let mut failures = 3;
        let mut attempt = || {
            failures -= 1;
            if failures > 0 { Err(away()) } else { Ok(failures) }
        };
        assert_eq!(once_reached("t", LONG, |_| true, &mut attempt).unwrap(), 0);

        let mut attempts = 0;
        let refused = || {
            attempts += 1;
            Err::<(), _>(Error::Schema { problem: "no table".into() })
        };
        assert!(matches!(once_reached("t", LONG, |_| true, refused), Err(Error::Schema { .. })));
        assert_eq!(attempts, 1, "what waiting does not change is said at once");
    }

    #[test]
    fn retries_end_when_the_time_is_over_or_the_pause_says_so() {
        let mut attempts = 0;
        let mut attempt = || {
            attempts += 1;
            Err::<(), _>(away())
        };
        assert!(once_reached("t", Duration::ZERO, |_| true, &mut attempt).unwrap_err().is_away());
        assert!(once_reached("t", LONG, |_| false, &mut attempt).unwrap_err().is_away());
        assert_eq!(attempts, 2);
    }
}
