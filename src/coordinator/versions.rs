//! Reports projections of which this worker's code has another version than the live read model,
//! and rebuilds in which programs take part that may be different.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::context::Context;
use crate::error::field;
use crate::plan::{ClusterView, Kind, ProjectionView, base_of};

/// What was last reported. Each change is reported once.
#[derive(Default)]
pub(super) struct Versions {
    /// The projections of another version: that of the code, and that of the live read model.
    others: BTreeMap<Arc<str>, (i32, i32)>,
    /// The builds of the workers that have the version of a rebuild, if there are several.
    builds: BTreeMap<Arc<str>, BTreeSet<Option<Arc<str>>>>,
}

impl Versions {
    pub(super) fn report(&mut self, context: &Context, view: &ClusterView) {
        let found = Self::of(context, view);
        let (replica_set, worker) = (context.replica_set(), context.worker());
        for (projection, (own, live)) in
            found.others.iter().filter(|(name, found)| self.others.get(*name) != Some(found))
        {
            if own < live {
                log::warn!(
                    "code is older than the read model: replica_set={replica_set} worker={worker} projection={projection} \
                     version={own} live={live}",
                    replica_set = field(&replica_set),
                    projection = field(projection)
                );
            } else {
                log::info!(
                    "code is newer than the read model: replica_set={replica_set} worker={worker} projection={projection} \
                     version={own} live={live}",
                    replica_set = field(&replica_set),
                    projection = field(projection)
                );
            }
        }
        for (projection, builds) in found.builds.iter().filter(|(name, found)| self.builds.get(*name) != Some(found)) {
            let builds: Vec<&str> = builds.iter().map(|build| build.as_deref().unwrap_or("none")).collect();
            log::warn!(
                "workers of one version have different builds: replica_set={replica_set} worker={worker} projection={projection} \
                 builds={}",
                field(&builds.join(",")),
                replica_set = field(&replica_set),
                projection = field(projection)
            );
        }
        *self = found;
    }

    fn of(context: &Context, view: &ClusterView) -> Self {
        let own = view.worker(context.worker());
        let other = |projection: &ProjectionView| {
            let version = own?.version_of(&projection.name)?;
            (version != projection.version).then(|| (projection.name.clone(), (version, projection.version)))
        };
        let of_kind = |kind| view.projections.iter().filter(move |projection| Kind::of(&projection.name) == kind);
        let builds = of_kind(Kind::Rebuild).filter_map(|rebuild| {
            let base = base_of(&rebuild.name);
            let builds: BTreeSet<_> = view
                .workers
                .iter()
                .filter(|worker| worker.version_of(base) == Some(rebuild.version))
                .map(|worker| worker.build.clone())
                .collect();
            (builds.len() > 1).then(|| (base.into(), builds))
        });
        Self { others: of_kind(Kind::Live).filter_map(other).collect(), builds: builds.collect() }
    }
}
