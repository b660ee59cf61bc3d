//! What keeps a rebuild from its switch, in sentences.

use super::reading::Reading;

/// Returns what a person should know or do, so that the rebuild gets to its switch.
pub(super) fn obstacles(reading: &Reading) -> Vec<String> {
    let Reading { version, parked, .. } = reading;
    let build = reading.build_id.as_ref().map_or_else(String::new, |build| format!(" and build {build:?}"));
    let error = reading.error.as_deref().unwrap_or("no error is recorded");
    let plural = if *parked == 1 { "" } else { "s" };
    let found = [
        reading.fault.as_ref().map(|fault| {
            format!("its checkpoints were changed by hand ({fault}): cancel the rebuild, and begin another one")
        }),
        (reading.workers == 0)
            .then(|| format!("no running worker has version {version}{build} of its code: start one, or cancel it")),
        reading.is_paused.then(|| "an operator has paused the rebuild: resume it".to_owned()),
        reading.is_halted.then(|| format!("its handler has halted: {error}")),
        reading.is_parked_only.then(|| {
            format!(
                "the rebuild has parked {parked} aggregate{plural}, and the live projection has handled their events: replay or \
                 discard them"
            )
        }),
        reading
            .is_live_paused
            .then(|| "the projection is paused, so it is not switched: resume it".to_owned()),
        reading.is_live_rewinding.then(|| "the projection is being rewound".to_owned()),
        reading.blocked.as_ref().map(|why| format!("the switch was put off: {why}")),
    ];
    found.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rebuilding::testing::half_way;

    #[test]
    fn each_obstacle_is_named() {
        assert_eq!(obstacles(&half_way()), Vec::<String>::new());
        for (change, part) in [
            (Reading { fault: Some("torn".into()), ..half_way() }, "changed by hand (torn)"),
            (Reading { workers: 0, ..half_way() }, "no running worker has version 2 of"),
            (Reading { workers: 0, build_id: Some("a1".into()), ..half_way() }, "version 2 and build \"a1\" of"),
            (Reading { is_paused: true, ..half_way() }, "paused the rebuild"),
            (Reading { is_halted: true, error: Some("no such customer".into()), ..half_way() }, ": no such customer"),
            (Reading { is_parked_only: true, parked: 1, ..half_way() }, "parked 1 aggregate,"),
            (Reading { is_live_paused: true, ..half_way() }, "the projection is paused"),
            (Reading { is_live_rewinding: true, ..half_way() }, "being rewound"),
            (Reading { blocked: Some("pid 7 has a lock".into()), ..half_way() }, "put off: pid 7 has a lock"),
        ] {
            let found = obstacles(&change);
            assert!(matches!(&found[..], [only] if only.contains(part)), "{part}: {found:?}");
        }
    }

    #[test]
    fn what_does_not_block_the_switch_is_none() {
        let retrying = Reading { error: Some("late".into()), parked: 3, ..half_way() };
        assert_eq!(obstacles(&retrying), Vec::<String>::new());
    }
}
