//! What the model breaks on purpose, to verify that the properties notice it.

use std::collections::BTreeMap;

use crate::plan::KeySet;

/// One thing that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sabotage {
    None,
    /// The fence does not compare this.
    FenceWithout(Fenced),
    /// A row that a deal does not cut keeps its token.
    TokenNotRenewed,
    /// The deal omits the last share.
    DealDropsShare,
    /// Cutting the rows loses the keys of the last share.
    CutDropsPiece,
    /// Cutting the rows makes one row of everything that a lane gets, at the highest position.
    CutJumps,
    /// Cutting the rows makes one row of everything that a lane gets, at the lowest position.
    CutGoesBack,
    /// A generation is activated although some of its workers are not ready.
    ActivatesEarly,
    /// A generation is activated with the checkpoints of the one before.
    ActivatesUncut,
    /// No worker ever sees a joiner.
    IgnoresJoiners,
    /// No worker is ever declared dead.
    NeverEvicts,
    /// An evicted worker does not register again.
    NeverRejoins,
    /// A runner that was fenced is not told to run again.
    RunnerNotRestarted,
    /// A runner is not told that its projection has been redistributed.
    DealNotTold,
    /// A projection whose rows were deleted does not begin again.
    NeverBegins,
    /// The deals of a projection that begins again get numbers that were used before.
    DealNumberReused,
    /// No worker sees that rows are not owned as they were dealt.
    EditNotSeen,
    /// A read model is cleared although workers still own its checkpoints.
    ClearsUndealt,
    /// Any worker that has ever begun to clear a read model may finish.
    AttemptNotCompared,
    /// Live checkpoints do not follow a rebuild.
    NotHeld,
    /// Checkpoints keep their tokens when they begin to follow.
    FollowKeepsTokens,
    /// A switch does not wait for older snapshots.
    SnapshotsNotAwaited,
    /// A rebuild counts as level although it is behind.
    LevelNotChecked,
    /// A switch does not look whether the projection is paused.
    SwitchedWhilePaused,
    /// Checkpoints keep their tokens when they become the live ones.
    SwitchKeepsTokens,
    /// A deal does not compare versions.
    VersionNotCompared,
    /// The live checkpoints go on following a rebuild although no worker can finish it.
    NeverReleased,
    /// A generation is not activated while a projection has no checkpoints.
    FaultBlocksAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fenced {
    Position,
    Token,
    /// Without a token, generation and worker would still be enough between generations.
    TokenAndGeneration,
    /// Neither token, generation nor worker.
    TokenAndOwner,
}

/// The pieces of a cut: by projection, position, worker and lane.
pub(super) type Cut = BTreeMap<(usize, i64, Option<usize>, usize), KeySet>;

/// The same pieces, but with all pieces of a lane at one position, which is wrong.
pub(super) fn at_one_position(cut: Cut, highest: bool) -> Cut {
    let mut whole: BTreeMap<(usize, Option<usize>, usize), (i64, KeySet)> = BTreeMap::new();
    for ((projection, position, worker, lane), keys) in cut {
        whole
            .entry((projection, worker, lane))
            .and_modify(|(at, all)| {
                *at = if highest { position.max(*at) } else { position.min(*at) };
                *all = all.union(&keys);
            })
            .or_insert((position, keys));
    }
    let piece = |((projection, worker, lane), (position, keys))| ((projection, position, worker, lane), keys);
    whole.into_iter().map(piece).collect()
}
