//! What fails in the chaos worker at single events, in handlers that are given no transaction.

use std::time::Duration;

use crossbeam_channel::never;
use pupsourcing_orchestrator::{BoxError, Event};

/// One in this many events is dangerous, for every worker.
pub(crate) const DANGEROUS: u128 = 4_000;
/// One in this many events is bad.
pub(crate) const BAD: u128 = 5_000;
/// How likely a bad event is to fail. It is never repaired, but a replay succeeds in the end.
const FAILS_AT_BAD: f64 = 0.7;
/// While a batch with hundreds of events has one chance to panic, each event has a part of it.
const EVENTS: f64 = 100.0;
/// One in this many events is slow.
const SLOW: u32 = 2_000;
/// One in this many slow events is so slow that a frozen worker is evicted meanwhile.
const VERY_SLOW: u32 = 5;

pub(crate) fn is_bad(event: &Event) -> bool {
    event.event_id().as_u128() % BAD == 1
}

pub(crate) fn is_dangerous(event: &Event) -> bool {
    event.event_id().as_u128().is_multiple_of(DANGEROUS)
}

/// The probabilities of faults. By default, nothing fails.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// How likely a batch is to panic.
    pub(crate) panics: f64,
    /// How likely a dangerous event is to abort the process.
    pub(crate) aborts: f64,
    /// Whether bad events fail.
    pub(crate) fails: bool,
    /// Whether events are slow now and then.
    pub(crate) slows: bool,
}

impl Faults {
    /// Fails before the event has had its effect.
    pub(crate) fn before(&self, event: &Event) -> Result<(), BoxError> {
        if self.slows && fastrand::u32(..SLOW) == 0 {
            let milliseconds = if fastrand::u32(..VERY_SLOW) == 0 { 500..2_500 } else { 0..50 };
            _ = never::<()>().recv_timeout(Duration::from_millis(fastrand::u64(milliseconds)));
        }
        assert!(fastrand::f64() >= self.panics / EVENTS, "it panics now and then");
        if self.fails && is_bad(event) && fastrand::f64() < FAILS_AT_BAD {
            Err("the event is bad".into())
        } else {
            Ok(())
        }
    }

    /// Fails after the event has had its effect.
    pub(crate) fn after(&self, event: &Event) {
        if is_dangerous(event) && fastrand::f64() < self.aborts {
            std::process::abort();
        }
    }
}
