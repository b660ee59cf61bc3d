//! The callers that wait in one process for projections of one database. Pure: it decides who polls
//! and when, from the moments that it is given.
//!
//! One caller polls for all, on its own connection. When it leaves, another one takes over. If its
//! statement takes too long, another one polls as well, so a connection that is stuck delays only
//! its own caller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wait_error::WaitError;
use crate::store::waiting::{Question, Standing};
use crate::threads::Waker;

/// The pause between two polls, from the first moments of the newest caller to later.
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(100);
/// The pause is this part of the time that the newest caller has waited: 2 ms for the first 50 ms.
const PART: u32 = 25;
/// The pause is at least this many times as long as the last poll took. So the polls of one process
/// keep one backend of the server busy for a third of the time at most.
const REST: u32 = 2;
/// The others wait this long for an overdue poll.
const OVERDUE: Duration = Duration::from_secs(1);

/// Whether everything was reached.
pub(super) type Verdict = Result<(), WaitError>;

/// Identifies a caller. Later callers have higher numbers.
pub(super) type Number = u64;

/// A question of a caller.
pub(super) type Asked = (Number, Arc<Question>);

/// What a caller does next.
#[derive(Debug)]
pub(super) enum Step {
    Return(Verdict),
    /// Ask these questions on its own connection.
    Poll(Vec<Asked>),
    /// Wait until this moment, or until it is woken.
    WaitUntil(Instant),
}

/// One caller.
#[derive(Debug)]
pub(super) struct Waiter {
    /// What is not done yet, with what is known of it. It is never empty while there is no verdict.
    open: Vec<(Arc<Question>, Standing)>,
    timeout: Duration,
    since: Instant,
    deadline: Instant,
    waker: Waker,
    verdict: Option<Verdict>,
}

impl Waiter {
    /// Takes the answers to the questions of a caller that begins to wait.
    pub(super) fn new(
        answered: Vec<(Arc<Question>, Standing)>,
        waker: Waker,
        timeout: Duration,
        (since, deadline): (Instant, Instant),
    ) -> Self {
        let mut waiter = Self { open: Vec::new(), timeout, since, deadline, waker, verdict: None };
        waiter.open = answered;
        waiter.judge();
        waiter
    }

    pub(super) fn verdict(&mut self) -> Option<Verdict> {
        self.verdict.take()
    }

    /// A projection that was seen to be done stays done, even if it is rewound afterwards.
    fn judge(&mut self) {
        self.open.retain(|(_, standing)| *standing != Standing::Done);
        let failed = self.open.iter().find_map(|(question, standing)| WaitError::of(&question.projection, standing));
        if let Some(error) = failed {
            self.verdict = Some(Err(error));
        } else if self.open.is_empty() {
            self.verdict = Some(Ok(()));
        }
    }

    fn timed_out(&self) -> Verdict {
        let Some((question, standing)) = self.open.first() else { return Ok(()) };
        let (position, target) = match standing {
            Standing::Behind { position, target } => (*position, *target),
            _ => (None, None),
        };
        Err(WaitError::TimedOut { projection: question.projection.clone(), position, target, timeout: self.timeout })
    }
}

#[derive(Debug, Clone, Copy)]
struct Poller {
    number: Number,
    /// If there is no answer by then, another caller polls as well.
    expected: Instant,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Group {
    waiters: BTreeMap<Number, Waiter>,
    poller: Option<Poller>,
    /// When the last poll ended, and how long it took.
    last: Option<(Instant, Duration)>,
}

impl Group {
    /// Adds a caller. The one that polls is woken, because it may have to poll sooner.
    pub(super) fn join(&mut self, number: Number, waiter: Waiter) {
        self.waiters.insert(number, waiter);
        if let Some(poller) = self.poller.and_then(|poller| self.waiters.get(&poller.number)) {
            poller.waker.wake();
        }
    }

    /// Removes a caller. If it was the one that polls, or was woken to be it, another one is woken.
    pub(super) fn leave(&mut self, number: Number) {
        self.waiters.remove(&number);
        self.poller = self.poller.filter(|poller| poller.number != number);
        if self.poller.is_none()
            && let Some(next) = self.waiters.values().find(|waiter| waiter.verdict.is_none())
        {
            next.waker.wake();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Decides what a caller does next.
    pub(super) fn step(&mut self, number: Number, now: Instant) -> Step {
        let Some(waiter) = self.waiters.get_mut(&number) else { return Step::Return(Ok(())) };
        if let Some(verdict) = waiter.verdict.take() {
            return Step::Return(verdict);
        }
        if now >= waiter.deadline {
            return Step::Return(waiter.timed_out());
        }
        let deadline = waiter.deadline;
        if let Some(poller) = self.poller
            && poller.number != number
            && now < poller.expected
        {
            return Step::WaitUntil(deadline.min(poller.expected));
        }
        let due = self.due(now);
        self.poller = Some(Poller { number, expected: due.max(now) + OVERDUE });
        if now < due { Step::WaitUntil(deadline.min(due)) } else { Step::Poll(self.asked()) }
    }

    /// Takes the answers of a poll that ran between these moments, and wakes the callers whose wait
    /// is over.
    pub(super) fn answered(&mut self, (begun, ended): (Instant, Instant), answers: Vec<(Asked, Standing)>) {
        self.last = Some((ended, ended.saturating_duration_since(begun)));
        for ((number, question), answer) in answers {
            // A caller may have left meanwhile.
            let Some(waiter) = self.waiters.get_mut(&number) else { continue };
            if let Some((_, standing)) = waiter.open.iter_mut().find(|(open, _)| Arc::ptr_eq(open, &question)) {
                *standing = answer;
            }
        }
        for waiter in self.waiters.values_mut().filter(|waiter| waiter.verdict.is_none()) {
            waiter.judge();
            if waiter.verdict.is_some() {
                waiter.waker.wake();
            }
        }
    }

    fn asked(&self) -> Vec<Asked> {
        let undecided = self.waiters.iter().filter(|(_, waiter)| waiter.verdict.is_none());
        undecided.flat_map(|(number, waiter)| waiter.open.iter().map(|(asked, _)| (*number, asked.clone()))).collect()
    }

    /// When the next poll is due. Each caller has asked once by itself before it has joined.
    fn due(&self, now: Instant) -> Instant {
        let newest = self.waiters.values().map(|waiter| waiter.since).max().unwrap_or(now);
        let (ended, took) = self.last.unwrap_or((newest, Duration::ZERO));
        let pause = (now.saturating_duration_since(newest) / PART).clamp(SHORTEST, LONGEST);
        ended + pause.max(took * REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::waiting::Target;

    const BEHIND: Standing = Standing::Behind { position: Some(3), target: Some(7) };
    const TIMEOUT: Duration = Duration::from_secs(10);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn question(projection: &str) -> Arc<Question> {
        Arc::new(Question { projection: projection.to_owned(), target: Target::Position(7) })
    }

    fn waiter(since: Instant, projections: &[&str]) -> Waiter {
        let answered = projections.iter().map(|name| (question(name), BEHIND)).collect();
        Waiter::new(answered, Waker::new().0, TIMEOUT, (since, since + TIMEOUT))
    }

    fn group(since: Instant, callers: Number) -> Group {
        let mut group = Group::default();
        (0..callers).for_each(|number| group.join(number, waiter(since, &["p"])));
        group
    }

    #[track_caller]
    fn polls(step: Step) -> Vec<Asked> {
        let Step::Poll(asked) = step else { panic!("{step:?}") };
        asked
    }

    #[track_caller]
    fn waits(step: &Step) -> Instant {
        let Step::WaitUntil(moment) = step else { panic!("{step:?}") };
        *moment
    }

    fn answer(group: &mut Group, at: Instant, asked: Vec<Asked>, standing: impl Fn(Number) -> Standing) {
        let answers = asked.into_iter().map(|asked| (asked.clone(), standing(asked.0))).collect();
        group.answered((at, at), answers);
    }

    #[test]
    fn one_polls_for_all_and_another_takes_over() {
        let start = Instant::now();
        let mut group = group(start, 3);
        assert_eq!(waits(&group.step(1, start)), start + ms(2), "it has just asked by itself");
        assert_eq!(waits(&group.step(0, start)), start + ms(2) + OVERDUE);
        let asked = polls(group.step(1, start + ms(2)));
        assert_eq!(asked.len(), 3);
        answer(&mut group, start + ms(3), asked, |number| if number < 2 { Standing::Done } else { BEHIND });
        assert!(matches!(group.step(0, start + ms(3)), Step::Return(Ok(()))));
        assert!(matches!(group.step(1, start + ms(3)), Step::Return(Ok(()))));
        assert_eq!(waits(&group.step(2, start + ms(3))), start + ms(2) + OVERDUE, "the other one has not left");
        group.leave(0);
        group.leave(1);
        assert_eq!(waits(&group.step(2, start + ms(3))), start + ms(5));
        assert_eq!(polls(group.step(2, start + ms(5))).len(), 1);
        group.leave(2);
        assert!(group.is_empty());
    }

    #[test]
    fn the_pause_grows_and_a_new_caller_makes_it_short() {
        let start = Instant::now();
        let mut group = group(start, 1);
        for (waited, pause) in [(10, 2), (50, 2), (500, 20), (5_000, 100)] {
            let now = start + ms(waited);
            answer(&mut group, now, vec![], |_| BEHIND);
            assert_eq!(waits(&group.step(0, now)), now + ms(pause), "after {waited} ms");
        }
        let now = start + ms(5_010);
        group.join(1, waiter(now, &["p"]));
        assert_eq!(polls(group.step(0, now)).len(), 2, "it is due already");
    }

    #[test]
    fn a_slow_server_is_polled_less() {
        let start = Instant::now();
        let mut group = group(start, 1);
        group.answered((start, start + ms(30)), vec![]);
        assert_eq!(waits(&group.step(0, start + ms(30))), start + ms(90));
    }

    #[test]
    fn another_one_polls_if_a_poll_is_overdue() {
        let start = Instant::now();
        let mut group = group(start, 2);
        let asked = polls(group.step(0, start + ms(2)));
        assert_eq!(waits(&group.step(1, start + ms(3))), start + ms(2) + OVERDUE);
        let later = start + ms(2) + OVERDUE;
        assert_eq!(polls(group.step(1, later)).len(), 2);
        // The first answer still counts, and its caller polls no more.
        answer(&mut group, later + ms(1), asked, |number| if number == 0 { BEHIND } else { Standing::Done });
        assert!(waits(&group.step(0, later + ms(1))) > later + ms(500));
        assert!(matches!(group.step(1, later + ms(1)), Step::Return(Ok(()))));
    }

    #[test]
    fn what_was_done_once_is_not_asked_again() {
        let start = Instant::now();
        let mut group = Group::default();
        group.join(0, waiter(start, &["a", "b"]));
        let asked = polls(group.step(0, start + ms(2)));
        let names = |asked: &[Asked]| asked.iter().map(|asked| asked.1.projection.clone()).collect::<Vec<_>>();
        assert_eq!(names(&asked), ["a", "b"]);
        let answers = asked.into_iter().zip([Standing::Done, BEHIND]).collect();
        group.answered((start, start), answers);
        assert_eq!(names(&polls(group.step(0, start + ms(4)))), ["b"]);
        let Step::Return(Err(WaitError::TimedOut { projection, position, target, timeout })) =
            group.step(0, start + TIMEOUT)
        else {
            panic!("it waits on")
        };
        assert_eq!((projection.as_str(), position, target, timeout), ("b", Some(3), Some(7), TIMEOUT));
    }

    #[test]
    fn one_that_cannot_get_there_ends_the_wait() {
        let start = Instant::now();
        let mut group = Group::default();
        group.join(0, waiter(start, &["a", "b"]));
        let asked = polls(group.step(0, start + ms(2)));
        group.answered((start, start), asked.into_iter().zip([BEHIND, Standing::NoWorker]).collect());
        let step = group.step(0, start + ms(2));
        assert!(
            matches!(&step, Step::Return(Err(WaitError::NoWorker { projection })) if projection == "b"),
            "{step:?}"
        );
    }

    #[test]
    fn a_caller_whose_wait_is_over_is_woken() {
        let start = Instant::now();
        let mut group = group(start, 1);
        let (waker, woken) = Waker::new();
        let other = Waiter::new(vec![(question("p"), BEHIND)], waker, TIMEOUT, (start, start + TIMEOUT));
        group.join(1, other);
        let asked = polls(group.step(0, start + ms(2)));
        answer(&mut group, start, asked, |number| if number == 0 { Standing::Done } else { BEHIND });
        assert!(woken.try_recv().is_err(), "nothing has changed for it");
        group.leave(0);
        assert!(woken.try_recv().is_ok(), "it takes over");
        let asked = polls(group.step(1, start + ms(2)));
        answer(&mut group, start, asked, |_| Standing::Done);
        assert!(woken.try_recv().is_ok());
    }
}
