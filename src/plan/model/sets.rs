//! The sets of checkpoints, which are numbers in the model: those of each projection, and of each
//! [kind](Kind), in the order of their names.

use std::sync::{Arc, LazyLock};

use crate::plan::{Code, Kind};

const MOST_PROJECTIONS: usize = 2;
const KINDS: [Kind; 3] = [Kind::Live, Kind::Old, Kind::Rebuild];
pub(crate) const SETS: usize = MOST_PROJECTIONS * KINDS.len();
const VERSIONS: i32 = 2;
const MOST_LANES: usize = 3;

/// Made once, because views are made very often.
static NAMES: LazyLock<[Arc<str>; SETS]> =
    LazyLock::new(|| std::array::from_fn(|set| kind_of(set).name(&format!("projection_{}", set / KINDS.len())).into()));

/// The code with each number of lanes.
type Lanes = [Arc<[Code]>; MOST_LANES];

/// The code of each set of projections, by its bits, in each version and with each number of lanes.
static KNOWN: LazyLock<Vec<[Lanes; 1 << MOST_PROJECTIONS]>> = LazyLock::new(|| {
    let code = |bits: usize, version, lanes| {
        let known = (0..MOST_PROJECTIONS).filter(move |projection| bits & 1 << projection != 0);
        known.map(move |projection| Code { name: NAMES[live(projection)].clone(), version, lanes })
    };
    let each = |version, bits| std::array::from_fn(|lanes| code(bits, version, lanes + 1).collect());
    (1..=VERSIONS).map(|version| std::array::from_fn(|bits| each(version, bits))).collect()
});

/// The live checkpoints of a projection.
pub(crate) fn live(projection: usize) -> usize {
    projection * KINDS.len()
}

/// The projection to which a set belongs.
pub(super) fn projection_of(set: usize) -> usize {
    set / KINDS.len()
}

pub(crate) fn kind_of(set: usize) -> Kind {
    KINDS[set % KINDS.len()]
}

/// The set of this kind of the same projection.
pub(crate) fn other(set: usize, kind: Kind) -> usize {
    live(projection_of(set)) + KINDS.iter().position(|known| *known == kind).unwrap()
}

/// The live checkpoints of projections, by their bits.
pub(super) fn live_sets(projections: u8) -> impl Iterator<Item = usize> {
    (0..MOST_PROJECTIONS).filter(move |projection| projections & 1 << projection != 0).map(live)
}

pub(crate) fn set_name(set: usize) -> &'static Arc<str> {
    &NAMES[set]
}

pub(crate) fn set_of(name: &str) -> usize {
    NAMES.iter().position(|known| &**known == name).unwrap()
}

pub(super) fn known_code(projections: u8, version: i32, lanes: usize) -> Arc<[Code]> {
    KNOWN[usize::try_from(version - 1).unwrap()][usize::from(projections)][lanes - 1].clone()
}
