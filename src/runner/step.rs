//! How a step of a runner's work ends.

use std::time::Duration;

use crossbeam_channel::Receiver;

use super::permit::Permit;
use super::portion::Portion;
use crate::feed::prefetch::{Reading, Request};

/// How a step of work ended.
pub(super) enum Step {
    /// There may be more to do at once.
    Again,
    /// A reaction has to be called, without a connection.
    React(Box<Portion>),
    /// There is nothing to do until the feed moves, or this time has passed.
    Idle(Option<Duration>),
    /// The reader has to be asked.
    Ask(Request),
    /// The reader has been asked, and its answer is awaited.
    Read(Reading),
    /// Continue after this delay.
    Delay(Duration),
    /// Continue with the permit to handle events that may end the process.
    AwaitPermit(Receiver<Permit>),
    /// Stop until the next command, or try again after this time.
    Halt(Option<Duration>),
    /// Stop until the next command: the worker is no longer the owner.
    Fenced,
}
