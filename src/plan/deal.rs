//! The deal: which worker gets which keys of a projection. Pure, and the only place where this is
//! decided.
//!
//! A *strategy* is a function from the members of a generation to the shares of one projection. It
//! gets the members that know the projection, in the order of their partitions, and decides only
//! which keys each of them gets, and in which lane. The shares have to be disjoint and to cover the
//! key space, and the same members have to give the same shares: any worker may apply them.
//! Everything else is decided elsewhere: which workers are members and when
//! ([`plan`](super::plan)), where a key's position is (the checkpoints), and whether a batch may
//! commit (the fence).

use std::sync::Arc;

use super::keys::KeySet;
use super::view::{DesiredState, ProjectionView, WorkerId, WorkerView, base_of};

/// A part of a projection: these keys belong to this lane of this worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Share {
    pub(crate) worker: WorkerId,
    pub(crate) lane: usize,
    pub(crate) keys: KeySet,
}

/// Which worker owns which keys of one projection from now on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Deal {
    pub(crate) projection: Arc<str>,
    /// Whether workers are to process the projection.
    pub(crate) desired: DesiredState,
    /// Disjoint, and all keys together; empty if no worker owns any of it.
    pub(crate) shares: Vec<Share>,
}

impl Deal {
    /// Distributes a projection among the members that know it, or to no worker while it is to be
    /// paused, or cleared.
    pub(crate) fn of(projection: &ProjectionView, members: &[&WorkerView]) -> Self {
        let desired = projection.target();
        let mut able: Vec<&WorkerView> = match desired {
            DesiredState::Running => members.iter().copied().filter(|worker| worker.knows(projection)).collect(),
            DesiredState::Paused => Vec::new(),
        };
        able.sort_by_key(|worker| worker.partition);
        Self { projection: projection.name.clone(), desired, shares: contiguous(&projection.name, &able) }
    }
}

/// The strategy in use: each member gets one range of keys, in the order of the partitions, and
/// each range is cut into the member's lanes. All ranges, and all lanes of a member, are as equal
/// as possible. So few keys change their owner when a member joins or leaves.
fn contiguous(projection: &str, members: &[&WorkerView]) -> Vec<Share> {
    let shares = members.iter().enumerate().flat_map(|(k, member)| {
        let part = KeySet::partition(k, members.len());
        let lanes = member.lanes_of(base_of(projection));
        (0..lanes).map(move |lane| Share { worker: member.id, lane, keys: part.part(lane, lanes) })
    });
    shares.filter(|share| !share.keys.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::plan::tests::worker;
    use crate::plan::{Code, KEY_SPACE, Rows, WorkerState};

    const KNOWN: [&str; 3] = ["orders", "invoices", "customers"];

    fn member(n: u128, partition: usize, lanes: usize, knows: &[&str]) -> WorkerView {
        WorkerView {
            projections: knows.iter().map(|name| Code { name: Arc::from(*name), version: 1, lanes }).collect(),
            ..worker(n, WorkerState::Ready, 5, Some(partition))
        }
    }

    fn projection(name: &str, desired: DesiredState) -> ProjectionView {
        let (dealt, rows) = (DesiredState::Running, Rows::AsDealt);
        ProjectionView {
            name: name.into(),
            version: 1,
            build: None,
            desired,
            is_clearing: false,
            dealt,
            deal: 7,
            rows,
            withdrawn: None,
        }
    }

    fn shares(name: &str, desired: DesiredState, members: &[WorkerView]) -> Vec<(u128, usize, String)> {
        let members: Vec<&WorkerView> = members.iter().collect();
        let deal = Deal::of(&projection(name, desired), &members);
        assert_eq!((&*deal.projection, deal.desired), (name, desired));
        deal.shares.iter().map(|share| (share.worker.0.as_u128(), share.lane, share.keys.to_string())).collect()
    }

    #[test]
    fn members_get_ranges_in_the_order_of_their_partitions() {
        let members = [member(1, 2, 1, &KNOWN), member(2, 0, 1, &KNOWN[..1]), member(3, 1, 2, &KNOWN[..2])];
        let dealt = |name| shares(name, DesiredState::Running, &members);
        let share = |worker, lane, keys: &str| (worker, lane, keys.to_owned());
        assert_eq!(
            dealt("orders"),
            [
                share(2, 0, "{[0,21845)}"),
                share(3, 0, "{[21845,32767)}"),
                share(3, 1, "{[32767,43690)}"),
                share(1, 0, "{[43690,65536)}"),
            ]
        );
        assert_eq!(
            dealt("invoices"),
            [share(3, 0, "{[0,16384)}"), share(3, 1, "{[16384,32768)}"), share(1, 0, "{[32768,65536)}")],
            "among those that know it"
        );
        assert_eq!(dealt("customers"), [share(1, 0, "{[0,65536)}")]);
        assert_eq!(dealt("unknown"), []);
        assert_eq!(shares("orders", DesiredState::Paused, &members), []);
    }

    #[test]
    fn only_members_with_the_version_get_a_share() {
        let old = member(1, 0, 1, &KNOWN);
        let new = |n, partition| WorkerView {
            projections: [Code { name: "orders".into(), version: 2, lanes: 1 }].into(),
            ..member(n, partition, 1, &[])
        };
        let members = [old, new(2, 1), new(3, 2)];
        let members: Vec<&WorkerView> = members.iter().collect();
        let owners = |name: &str, version, desired| {
            let deal = Deal::of(&ProjectionView { version, ..projection(name, desired) }, &members);
            deal.shares.iter().map(|share| share.worker.0.as_u128()).collect::<Vec<_>>()
        };
        let running = DesiredState::Running;
        assert_eq!(owners("orders", 1, running), [1]);
        assert_eq!(owners("orders@rebuild", 2, running), [2, 3]);
        assert_eq!(owners("orders", 2, running), [2, 3], "after the switch");
        assert_eq!(owners("orders@rebuild", 3, running), [0; 0]);
        assert_eq!(owners("orders@old", 1, DesiredState::Paused), [0; 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// For any members in any order: all keys belong to exactly one share, if there is a
        /// member.
        #[test]
        fn shares_are_disjoint_and_cover_the_key_space(
            lanes in prop::collection::vec(1..65_usize, 0..40), knows in any::<u64>(), shuffled in any::<u64>(),
        ) {
            let members: Vec<WorkerView> = (0..).zip(&lanes).map(|(n, lanes)| {
                let known = if knows >> n & 1 == 1 { &KNOWN[..1] } else { &[] };
                WorkerView { id: WorkerId(Uuid::from_u128(n)), ..member(n, usize::try_from(n).unwrap(), *lanes, known) }
            }).collect();
            let mut seen: Vec<&WorkerView> = members.iter().collect();
            let deal = Deal::of(&projection("orders", DesiredState::Running), &seen);
            fastrand::Rng::with_seed(shuffled).shuffle(&mut seen);
            prop_assert_eq!(&deal, &Deal::of(&projection("orders", DesiredState::Running), &seen));

            let able = members.iter().filter(|member| member.has_code("orders"));
            prop_assert_eq!(deal.shares.len(), able.clone().map(|member| member.lanes_of("orders")).sum::<usize>());
            let sum: i32 = deal.shares.iter().map(|share| share.keys.len()).sum();
            let all = deal.shares.iter().fold(KeySet::default(), |all, share| all.union(&share.keys));
            let expected = if able.count() == 0 { (0, KeySet::default()) } else { (KEY_SPACE, KeySet::all()) };
            prop_assert_eq!((sum, all), expected);
        }
    }
}
