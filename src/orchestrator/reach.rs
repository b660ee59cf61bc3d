//! Reaching the database before there is a worker: on a thread of its own, and as often as it takes.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::error::{Error, panic_message};

/// Does something with the database; again after a pause, for up to `wait`, while the server is away. `pause` is false once there is no
/// use in going on.
///
/// The database client refuses to block a thread that belongs to an asynchronous runtime. So this blocks one of its own, and the caller
/// only waits for it.
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
    fn it_goes_on_while_the_server_is_away_and_no_longer() {
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
    fn it_ends_when_the_time_is_over_or_nobody_waits() {
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
