//! Moments that are in the future by the server's clock, because the clock was set back after they
//! were recorded.
//!
//! Such a moment is replaced by the moment when the observer first saw it. Otherwise, after the
//! clock is set back by an hour, a worker that froze just before would be considered alive for an
//! hour.

use std::collections::BTreeMap;

use super::view::{ClusterView, ServerTime, Session};

/// When one observer first saw each moment that is in the future.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sightings(BTreeMap<ServerTime, ServerTime>);

impl Sightings {
    /// Replaces each moment of the view that is in the future by the moment when it was first seen.
    pub(crate) fn settle(&mut self, mut view: ClusterView) -> ClusterView {
        let now = view.now;
        // Moments that this view no longer contains are forgotten.
        let seen = std::mem::take(&mut self.0);
        let mut settle = |moment: &mut ServerTime| {
            if *moment > now {
                // The clock may have been set back again.
                let first = seen.get(moment).map_or(now, |first| now.min(*first));
                self.0.insert(*moment, first);
                *moment = first;
            }
        };
        settle(&mut view.observing_since);
        if let Some(generation) = &mut view.generation {
            settle(&mut generation.created_at);
        }
        for worker in &mut view.workers {
            settle(&mut worker.registered_at);
            settle(&mut worker.last_heartbeat);
            if let Session::LostSince(at) = &mut worker.session {
                settle(at);
            }
        }
        view
    }
}
