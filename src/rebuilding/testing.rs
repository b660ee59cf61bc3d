//! Readings for tests.

use super::reading::Reading;

/// A rebuild that two workers have brought to half of the 1,000 events, within 100 seconds.
pub(crate) fn half_way() -> Reading {
    Reading {
        command_id: 7,
        state: "loading".to_owned(),
        version: 2,
        build_id: None,
        rate_limit: Some(5_000),
        keep_old: false,
        copy: false,
        bytes: 3_000_000,
        age_seconds: 100.0,
        from: 0,
        newest: 1_000,
        parts: vec![(16_384, 200), (49_152, 600)],
        events: 400,
        workers: 2,
        parked: 0,
        is_parked_only: false,
        fault: None,
        is_paused: false,
        is_live_paused: false,
        is_live_rewinding: false,
        is_halted: false,
        error: None,
        failing_event: None,
        blocked: None,
    }
}
