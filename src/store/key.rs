//! An event's key, in SQL. [`KEY_SPACE`] is the number of keys.

use crate::plan::{KEY_SPACE, KeySet};

/// A hash of a fixed text and the name of the encoding, in SQL. It is stored when the schema is
/// created and compared at every start: the server computes the keys, so a server that hashes
/// differently would assign events to other partitions than their checkpoints do. It hashes the
/// bytes of the database's encoding.
pub(super) fn hash_probe() -> String {
    hash("('pupsourcing-orchestrator in ' || pg_catalog.current_setting('server_encoding'))")
}

/// The key of the event in this row, in SQL; NULL if there is no event.
pub(super) fn event_key() -> String {
    format!("({} OPERATOR(pg_catalog.&) {})::pg_catalog.int4", hash("aggregate_id"), KEY_SPACE - 1)
}

/// The set of all keys, in SQL.
pub(super) fn all_keys() -> String {
    format!("'{}'::pg_catalog.int4multirange", KeySet::all())
}

fn hash(text: &str) -> String {
    format!("pg_catalog.hashtextextended({text}, 0::pg_catalog.int8)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    /// The formula is written out, because the checkpoints of existing schemas refer to these keys.
    #[test]
    fn formula_of_an_events_key_never_changes() {
        let sql = format!(
            "SELECT {} = (hashtextextended(aggregate_id, 0) & 65535)::int4, {} = '{{[0,65536)}}'::int4multirange,
                    {} = hashtextextended('pupsourcing-orchestrator in UTF8', 0)
             FROM (VALUES (''), ('order-7'), ('a longer one, so that more of the hash is used')) AS event (aggregate_id)",
            event_key(),
            all_keys(),
            hash_probe()
        );
        for row in testing::connect().query(&sql, &[]).unwrap() {
            assert_eq!((row.get(0), row.get(1), row.get(2)), (true, true, true));
        }
    }

    #[test]
    fn the_key_space_is_a_power_of_two() {
        assert_eq!(KEY_SPACE.count_ones(), 1, "a key is the low bits of a hash");
    }
}
