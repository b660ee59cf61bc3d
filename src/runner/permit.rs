//! The permit to handle events that may end the process. A process has only one, so that only one
//! projection is blamed if the process ends.

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

/// The runners that wait for the permit, with the number of attempts that ended uncleanly.
struct Line {
    is_out: bool,
    waiting: Vec<(u32, Sender<Permit>)>,
}

static LINE: Mutex<Line> = Mutex::new(Line { is_out: false, waiting: Vec::new() });

/// Dropping it passes it on to the waiting runner with the fewest attempts, whose events are the
/// least likely to end the process.
#[derive(Debug)]
pub(super) struct Permit(());

/// Asks for the permit. It arrives on the returned channel; the caller drops the channel to give up
/// waiting.
pub(super) fn request(attempts: u32) -> Receiver<Permit> {
    let (sender, receiver) = bounded(1);
    let is_free = {
        let mut line = LINE.lock();
        line.waiting.push((attempts, sender));
        !std::mem::replace(&mut line.is_out, true)
    };
    if is_free {
        drop(Permit(()));
    }
    receiver
}

impl Line {
    /// Removes the runner that gets the permit next.
    fn next(&mut self) -> Option<Sender<Permit>> {
        let least = self.waiting.iter().enumerate().min_by_key(|(_, (attempts, _))| *attempts)?.0;
        Some(self.waiting.remove(least).1)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let next = {
            let mut line = LINE.lock();
            let next = line.next();
            line.is_out = next.is_some();
            next
        };
        if let Some(next) = next {
            // If that runner has given up, the permit is dropped here and goes to the next one.
            _ = next.try_send(Self(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn permit_goes_to_the_request_with_the_fewest_attempts() {
        const SOON: Duration = Duration::from_secs(10);
        let first = request(7).recv_timeout(SOON).unwrap();
        let (many, gone, few, same) = (request(9), request(1), request(2), request(2));
        assert!([&many, &gone, &few, &same].iter().all(|waits| waits.is_empty()));
        drop(gone);
        drop(first);
        let permit = few.recv_timeout(SOON).unwrap();
        assert!(many.is_empty() && same.is_empty());
        drop(permit);
        // This request was given the permit, but has not taken it.
        drop(same);
        drop(many.recv_timeout(SOON).unwrap());
        drop(request(1).recv_timeout(SOON).unwrap());
    }
}
