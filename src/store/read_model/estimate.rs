//! What a rebuild needs, as it is said beforehand.

use std::time::Duration;

use postgres::GenericClient;
use postgres::types::Type;

/// How many bytes of a table, with its indexes, are replaced in a second if every row differs. Of
/// narrow rows with three indexes, one of them unique, PostgreSQL 15 replaced 18 MB per second of
/// processor time; of wide rows, 78 MB. This is about half of the lowest rate, because a server has
/// other work too. Rows that are equal are only read, at 130 MB per second.
const REPLACED_BYTES_PER_SECOND: u64 = 10_000_000;

/// Estimates how long the replacement of a table's content keeps others from writing to it.
pub(crate) fn lock_time_of_copy(bytes: u64) -> Duration {
    Duration::from_secs(bytes.div_ceil(REPLACED_BYTES_PER_SECOND))
}

/// The size of tables with their indexes and TOAST tables, in bytes.
pub(crate) fn size(client: &mut impl GenericClient, tables: &[u32]) -> Result<u64, postgres::Error> {
    let row = client.query_typed_one(
        "SELECT coalesce(pg_catalog.sum(pg_catalog.pg_total_relation_size(oid)), 0)::pg_catalog.int8 FROM pg_catalog.unnest($1) AS wanted (oid)",
        &[(&tables, Type::OID_ARRAY)],
    )?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::store::read_model::{lock_time_of_copy, size};
    use crate::store::testing;

    #[test]
    fn the_lock_time_grows_with_the_size() {
        for (bytes, seconds) in [(0, 0), (1, 1), (10_000_000, 1), (10_000_001, 2), (12_000_000_000, 1_200)] {
            assert_eq!(lock_time_of_copy(bytes), Duration::from_secs(seconds), "{bytes}");
        }
    }

    #[test]
    fn the_size_includes_indexes_and_toast() {
        let mut client = testing::connect();
        client
            .batch_execute(
                "CREATE TABLE public.small (); CREATE TABLE public.big (id int PRIMARY KEY, text text);
                 ALTER TABLE public.big ALTER COLUMN text SET STORAGE EXTERNAL;
                 INSERT INTO public.big VALUES (1, repeat('x', 100000))",
            )
            .unwrap();
        let oid = |client: &mut postgres::Client, name: &str| -> u32 {
            client.query_one(&format!("SELECT '{name}'::regclass::oid"), &[]).unwrap().get(0)
        };
        let (small, big) = (oid(&mut client, "public.small"), oid(&mut client, "public.big"));
        assert_eq!(size(&mut client, &[]).unwrap(), 0);
        assert_eq!(size(&mut client, &[small]).unwrap(), 0);
        let bytes = size(&mut client, &[small, big]).unwrap();
        // A page of the table, two of the index, and the text.
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
        // A table that is gone has no size.
        assert_eq!(size(&mut client, &[1, big]).unwrap(), bytes);
    }
}
