//! Reports projections that cannot be processed although workers know them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backoff::Mentions;
use crate::context::Context;
use crate::error::field;
use crate::plan::{ClusterView, Fault};

/// The faults of the last view, and when each was last logged.
#[derive(Default)]
pub(super) struct Faults(BTreeMap<Arc<str>, Mentions>);

impl Faults {
    /// Logs each fault at most every 30 s, and counts them.
    pub(super) fn report(&mut self, context: &Context, view: &ClusterView) {
        let mut found = BTreeMap::new();
        for (projection, error) in faults(view, context) {
            let mut mentions = self.0.remove(&projection).unwrap_or_default();
            if mentions.is_due() {
                log::error!(
                    "projection is not processed: replica_set={} worker={} projection={projection} error={error}",
                    field(&context.replica_set()),
                    context.worker(),
                    projection = field(&projection),
                    error = field(&error)
                );
            }
            found.insert(projection, mentions);
        }
        context.metrics.broken_projections.set(i64::try_from(found.len()).unwrap_or(i64::MAX));
        self.0 = found;
    }
}

fn faults(view: &ClusterView, context: &Context) -> Vec<(Arc<str>, String)> {
    let withdrawn = view.projections.iter().filter_map(|projection| {
        let error = match projection.withdrawn? {
            Fault::Missing => {
                "its rows in {checkpoints} were deleted: restore them, or delete its row in {projections} as well to let it start \
                 again"
            }
            Fault::Torn => {
                "its rows in {checkpoints} overlap or leave keys out, which only a change by hand can cause: restore them, or \
                 rebuild the projection"
            }
        };
        Some((projection.name.clone(), context.names.sql(error)))
    });
    let taken = view.unclaimed.iter().filter_map(|unclaimed| {
        let owner = unclaimed.owner.as_ref()?;
        Some((unclaimed.name.clone(), format!("it belongs to replica set {owner:?}: only one may process it")))
    });
    withdrawn.chain(taken).collect()
}
