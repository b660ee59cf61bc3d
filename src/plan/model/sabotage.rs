//! What the model breaks on purpose, to see that it is noticed.

use std::collections::BTreeMap;

use crate::plan::KeySet;

/// One thing that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sabotage {
    None,
    /// The fence does not compare this.
    FenceWithout(Fenced),
    /// `recut` loses the keys of the last partition.
    RecutDropsPiece,
    /// `recut` makes one row of all that a worker gets, at the highest position.
    RecutJumps,
    /// `recut` makes one row of all that a worker gets, at the lowest position.
    RecutGoesBack,
    /// A generation is activated although some are not ready.
    ActivatesEarly,
    /// A generation is activated with the checkpoints of the one before.
    ActivatesUncut,
    /// Nobody ever sees a joiner.
    IgnoresJoiners,
    /// Nobody is ever declared dead.
    NeverEvicts,
    /// An evicted worker does not come back.
    NeverRejoins,
    /// A runner that was fenced is not told to run again.
    RunnerNotRestarted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fenced {
    Position,
    Generation,
    /// Neither generation nor worker.
    Owner,
}

/// The pieces of a cut: by projection, position and worker.
pub(super) type Cut = BTreeMap<(usize, i64, Option<usize>), KeySet>;

/// The same with all pieces of a worker at one position, which is wrong.
pub(super) fn at_one_position(cut: Cut, highest: bool) -> Cut {
    let mut whole: BTreeMap<(usize, Option<usize>), (i64, KeySet)> = BTreeMap::new();
    for ((projection, position, worker), keys) in cut {
        whole
            .entry((projection, worker))
            .and_modify(|(at, all)| {
                *at = if highest { position.max(*at) } else { position.min(*at) };
                *all = all.union(&keys);
            })
            .or_insert((position, keys));
    }
    whole.into_iter().map(|((projection, worker), (position, keys))| ((projection, position, worker), keys)).collect()
}
