//! Moments that have not come yet by the server's clock, because that was set back since they were
//! recorded.
//!
//! How long ago such a moment was is not known, except that it was before it was first seen. So it
//! is judged from then on: otherwise a worker that froze just before an hour was set back would be
//! considered alive for an hour.

use std::collections::BTreeMap;

use super::view::{ClusterView, ServerTime, Session};

/// When one observer first saw each moment that has not come yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sightings(BTreeMap<ServerTime, ServerTime>);

impl Sightings {
    /// Replaces each moment of the view that has not come yet by the moment when it was first seen.
    pub(crate) fn settle(&mut self, mut view: ClusterView) -> ClusterView {
        let now = view.now;
        // What this view does not show any more is forgotten.
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
