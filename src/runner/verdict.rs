//! What a failure leads to. Pure.
//!
//! An attempt counts only if its events cause the failure. Failures of the connection and of the
//! environment, and those that other transactions cause, are retried without a limit.

use super::failure::Failure;

/// How often a batch is repeated without being counted because a kept statement was outdated. This
/// stops a handler that makes its own statements outdated.
const REPEATS: u32 = 3;

/// What the runner is to do about a failure. Nothing of the batch was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Reload at once. It may be unknown whether the last commit succeeded: the checkpoint tells.
    Reload,
    /// Reload after a delay that grows.
    ReloadLater,
    /// Commit this many events from the front of the batch first, so that the failing event is
    /// alone.
    CommitFirst(usize),
    /// Retry the batch.
    Retry,
    /// Retry the batch at once, on the same connection. It does not count.
    Repeat,
    /// Park the aggregate of the batch's first event, at which the attempts are used up.
    Park,
    /// Stop: the attempts are used up. Try again with one event after a long time.
    Halt,
    /// Stop until an operator has acted.
    HaltForGood,
    /// Stop: the rows are no longer this worker's.
    Fenced,
}

/// The failed attempts at the current batch that ended by themselves.
#[derive(Debug)]
pub(super) struct Attempts {
    failed: u32,
    /// How many have been repeated without being counted.
    repeated: u32,
    allowed: u32,
    /// Whether the aggregate of a failing event is parked.
    parks: bool,
}

impl Attempts {
    pub(super) fn new(allowed: u32, parks: bool) -> Self {
        Self { failed: 0, repeated: 0, allowed, parks }
    }

    pub(super) fn parks(&self) -> bool {
        self.parks
    }

    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    pub(super) fn allowed(&self) -> u32 {
        self.allowed
    }

    /// Takes note that the batch has been committed.
    pub(super) fn succeeded(&mut self) {
        self.failed = 0;
        self.repeated = 0;
    }

    /// Takes a failure, and returns what the runner is to do about it.
    pub(super) fn judge(&mut self, failure: &Failure) -> Verdict {
        match failure {
            Failure::Fenced => Verdict::Fenced,
            Failure::Transient(_) | Failure::Connection(_) => Verdict::Reload,
            Failure::Outdated(_) if self.repeated < REPEATS => {
                self.repeated += 1;
                Verdict::Repeat
            }
            // Attempts that end with their connection are counted by the suspicion.
            Failure::Environment { handled: 0, .. } | Failure::Lost(_) => Verdict::ReloadLater,
            Failure::Suspected(_) if self.parks => Verdict::Park,
            Failure::Suspected(_) | Failure::Full(_) => Verdict::Halt,
            Failure::Unreadable(_) | Failure::Missing(_) => {
                self.failed += 1;
                Verdict::Halt
            }
            Failure::Final(_) | Failure::Trespass(_) => {
                self.failed += 1;
                Verdict::HaltForGood
            }
            Failure::Handler { handled: 0, .. } | Failure::Outdated(_) => {
                self.failed += 1;
                match failure {
                    _ if self.failed < self.allowed => Verdict::Retry,
                    // Only a failure of the handler tells which event is the reason.
                    Failure::Handler { .. } if self.parks => Verdict::Park,
                    _ => Verdict::Halt,
                }
            }
            Failure::Environment { handled, .. } | Failure::Handler { handled, .. } => Verdict::CommitFirst(*handled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(handled: usize) -> Failure {
        Failure::Handler { error: "no such customer".into(), handled }
    }

    #[test]
    fn failures_have_verdicts_and_only_the_events_count() {
        let transient = || Failure::Transient("a deadlock".into());
        let outdated = || Failure::Outdated("the table was altered".into());
        let connection = || Failure::Connection("it is closed".into());
        let lost = || Failure::Lost("it is closed".into());
        let environment = |handled| Failure::Environment { error: "the disk is full".into(), handled };
        let unreadable = || Failure::Unreadable("it is too large".into());
        let missing = || Failure::Missing("it was deleted".into());
        let suspected = || Failure::Suspected("it ended eight times".into());
        let full = || Failure::Full("100 are parked".into());
        let for_good = || Failure::Final("the handler has ended the transaction".into());
        // The attempts allowed, and those that have failed before; the failure, the verdict, and
        // the attempts that have failed afterwards.
        for (allowed, before, failure, verdict, after) in [
            (3, 0, Failure::Fenced, Verdict::Fenced, 0),
            (3, 2, Failure::Fenced, Verdict::Fenced, 2),
            (3, 2, transient(), Verdict::Reload, 2),
            (1, 0, transient(), Verdict::Reload, 0),
            (1, 0, outdated(), Verdict::Repeat, 0),
            (1, 0, connection(), Verdict::Reload, 0),
            (1, 0, lost(), Verdict::ReloadLater, 0),
            (3, 2, environment(0), Verdict::ReloadLater, 2),
            (1, 0, environment(0), Verdict::ReloadLater, 0),
            (1, 0, environment(4), Verdict::CommitFirst(4), 0),
            (3, 0, unreadable(), Verdict::Halt, 1),
            (3, 1, unreadable(), Verdict::Halt, 2),
            (1, 0, missing(), Verdict::Halt, 1),
            (3, 1, suspected(), Verdict::Halt, 1),
            (3, 3, full(), Verdict::Halt, 3),
            (3, 0, for_good(), Verdict::HaltForGood, 1),
            (3, 0, handler(0), Verdict::Retry, 1),
            (3, 1, handler(0), Verdict::Retry, 2),
            (3, 2, handler(0), Verdict::Halt, 3),
            (3, 3, handler(0), Verdict::Halt, 4),
            (1, 0, handler(0), Verdict::Halt, 1),
            (3, 0, handler(1), Verdict::CommitFirst(1), 0),
            (3, 2, handler(7), Verdict::CommitFirst(7), 2),
            (1, 0, handler(7), Verdict::CommitFirst(7), 0),
        ] {
            let case = format!("{failure:?} after {before} of {allowed}");
            let judged = |parks| {
                let mut attempts = Attempts { failed: before, ..Attempts::new(allowed, parks) };
                let verdict = attempts.judge(&failure);
                (verdict, attempts.failed())
            };
            assert_eq!(judged(false), (verdict, after), "{case}");
            let is_of_event = matches!(failure, Failure::Handler { .. } | Failure::Suspected(_));
            let parked = if verdict == Verdict::Halt && is_of_event { Verdict::Park } else { verdict };
            assert_eq!(judged(true), (parked, after), "{case}, parks");
            let mut attempts = Attempts { failed: before, ..Attempts::new(allowed, false) };
            attempts.succeeded();
            assert_eq!(attempts.failed(), 0);
        }
    }

    #[test]
    fn repeats_are_bounded_until_a_batch_is_committed() {
        let mut attempts = Attempts::new(2, true);
        for _ in 0..2 {
            let verdicts = [(); 5].map(|()| attempts.judge(&Failure::Outdated("the table was altered".into())));
            assert_eq!(verdicts[..3], [Verdict::Repeat; 3]);
            assert_eq!(verdicts[3..], [Verdict::Retry, Verdict::Halt]);
            attempts.succeeded();
        }
    }
}
