//! The statements that a batch of a fold executes.
//!
//! They run beside code of the application, under its settings. So each function, operator and type
//! in them is qualified, as in [`fence`](crate::store::fence).

use std::fmt::Write as _;

use super::table::FoldTable;

/// From this many keys on, a batch uses [`PREPARE`] and [`Statements::many`]. The few keys of a
/// small batch do not pay for another round trip.
const MANY: usize = 20;

/// Makes the server use the index on the key: it would read the whole table if its statistics are
/// older than the rows, and those of the copy in a rebuild always are.
const PREPARE: &str = "SELECT pg_catalog.set_config('enable_seqscan', 'off', true), pg_catalog.set_config('enable_hashjoin', 'off', true),
        pg_catalog.set_config('enable_mergejoin', 'off', true)";

/// The statements on one table. The texts are made once, because [`Tx`](crate::Tx) keeps prepared
/// statements by their text.
#[derive(Debug)]
pub(crate) struct Statements {
    few: ByIndex,
    many: ByIndex,
    /// Deletes all rows.
    pub(crate) clear: String,
    /// Deletes the row of a key.
    pub(crate) delete: String,
}

/// The statements of one batch.
#[derive(Debug)]
pub(crate) struct ByIndex {
    /// To be executed before the others, if there is one.
    pub(crate) prepare: Option<&'static str>,
    /// Locks the rows of keys, and creates the missing ones with version 0.
    pub(crate) lock: String,
    /// Returns the number of a key from 1 on, and its state, version and position.
    pub(crate) read: String,
    /// Writes the rows that are still as they were read, and returns how many.
    pub(crate) write: String,
}

impl Statements {
    pub(crate) fn new(table: &FoldTable) -> Self {
        let name = table.quoted();
        Self {
            few: ByIndex::new(table, None),
            many: ByIndex::new(table, Some(PREPARE)),
            clear: format!("DELETE FROM {name}"),
            delete: format!("DELETE FROM {name} AS held WHERE held.key OPERATOR(pg_catalog.=) $1::pg_catalog.text"),
        }
    }

    /// Those for a batch with this many keys.
    pub(crate) fn of(&self, keys: usize) -> &ByIndex {
        if keys < MANY { &self.few } else { &self.many }
    }
}

impl ByIndex {
    fn new(table: &FoldTable, prepare: Option<&'static str>) -> Self {
        // Plans are kept by the text. One that was made for few keys may be wrong for many.
        let mark = if prepare.is_some() { " -- many" } else { "" };
        Self {
            prepare,
            lock: format!("{}{mark}", lock(table)),
            read: format!("{}{mark}", read(table)),
            write: format!("{}{mark}", write(table)),
        }
    }
}

/// Locks rows in the order of their keys, so that two workers do not wait for each other. The
/// server also locks a row for which the condition of DO UPDATE is false. A row that another
/// transaction is inserting is waited for.
fn lock(table: &FoldTable) -> String {
    format!(
        "INSERT INTO {} AS held (key, state, version, position, updated_at)
         SELECT given.key, 'null'::pg_catalog.jsonb, 0, 0, pg_catalog.now()
         FROM pg_catalog.unnest($1::pg_catalog.text[]) AS given (key) ORDER BY given.key COLLATE pg_catalog.\"C\"
         ON CONFLICT (key) DO UPDATE SET version = held.version WHERE false",
        table.quoted()
    )
}

fn read(table: &FoldTable) -> String {
    // The limit makes it look up key by key.
    format!(
        "SELECT given.number, found.state, found.version, found.position
         FROM pg_catalog.unnest($1::pg_catalog.text[]) WITH ORDINALITY AS given (key, number)
         CROSS JOIN LATERAL (
             SELECT held.state, held.version, held.position FROM {} AS held
             WHERE held.key OPERATOR(pg_catalog.=) given.key LIMIT 1) AS found",
        table.quoted()
    )
}

/// Its parameters are arrays: the keys; their states, NULL for a row to delete; versions;
/// positions; the versions and positions that were read, NULL for a row to insert; and the values
/// of each extracted column.
///
/// A row that another transaction has changed meanwhile is not written. The server waits for that
/// transaction, and then compares with the row as it is.
fn write(table: &FoldTable) -> String {
    let name = table.quoted();
    let [mut arrays, mut given, mut set, mut columns, mut values] = [const { String::new() }; 5];
    for (number, column) in table.columns.iter().enumerate() {
        let (quoted, plain) = (column.quoted(), column.plain_type());
        _ = write!(arrays, ", pg_catalog.unnest(${}::pg_catalog.text[])", number + 7);
        _ = write!(given, ", value_{number}");
        _ = write!(set, ", {quoted} = given.value_{number}::{plain}");
        _ = write!(columns, ", {quoted}");
        _ = write!(values, ", given.value_{number}::{plain}");
    }
    let is_as_it_was =
        "held.key OPERATOR(pg_catalog.=) given.key AND held.version OPERATOR(pg_catalog.=) given.was_version
                        AND held.position OPERATOR(pg_catalog.=) given.was_position";
    format!(
        "WITH given AS (
             SELECT * FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]),
                                      pg_catalog.unnest($3::pg_catalog.int8[]), pg_catalog.unnest($4::pg_catalog.int8[]),
                                      pg_catalog.unnest($5::pg_catalog.int8[]), pg_catalog.unnest($6::pg_catalog.int8[]){arrays})
             AS given (key, state, version, position, was_version, was_position{given})
         ), updated AS (
             UPDATE {name} AS held SET state = given.state::pg_catalog.jsonb, version = given.version, position = given.position,
                                       updated_at = pg_catalog.now(){set}
             FROM given WHERE given.state IS NOT NULL AND given.was_version IS NOT NULL AND {is_as_it_was} RETURNING 1
         ), inserted AS (
             INSERT INTO {name} (key, state, version, position, updated_at{columns})
             SELECT given.key, given.state::pg_catalog.jsonb, given.version, given.position, pg_catalog.now(){values}
             FROM given WHERE given.was_version IS NULL ON CONFLICT (key) DO NOTHING RETURNING 1
         ), deleted AS (
             DELETE FROM {name} AS held USING given WHERE given.state IS NULL AND {is_as_it_was} RETURNING 1
         )
         SELECT (SELECT pg_catalog.count(*) FROM updated) OPERATOR(pg_catalog.+) (SELECT pg_catalog.count(*) FROM inserted)
                OPERATOR(pg_catalog.+) (SELECT pg_catalog.count(*) FROM deleted)"
    )
}

/// Returns the state of the key `$1`.
pub(crate) fn read_one(table: &FoldTable) -> String {
    format!("SELECT held.state FROM {} AS held WHERE held.key OPERATOR(pg_catalog.=) $1", table.quoted())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use postgres::{Client, NoTls, Transaction};

    use super::*;
    use crate::store::testing;

    fn table() -> FoldTable {
        FoldTable { fold: "sums".into(), name: "sums".into(), columns: vec![] }
    }

    fn prepared() -> (String, Client) {
        let url = testing::database();
        let mut client = Client::connect(&url, NoTls).unwrap();
        client.batch_execute(&table().sql()).unwrap();
        (url, client)
    }

    fn rows(client: &mut impl postgres::GenericClient) -> Vec<(String, i64)> {
        let rows = client.query("SELECT key, version FROM sums ORDER BY key", &[]).unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    fn lock_all(tx: &mut Transaction<'_>, keys: &[&str]) {
        tx.execute(&lock(&table()), &[&keys]).unwrap();
    }

    /// One session holds keys and does something with their rows. Another one waits for it, and
    /// then sees what it has done, whatever that is.
    #[test]
    fn locks_cover_rows_that_are_created_or_deleted_meanwhile() {
        let insert = "INSERT INTO sums SELECT key, '1', 1, 1, now() FROM unnest(ARRAY['a', 'b']) AS key";
        for (before, meanwhile, after) in [
            (
                "",
                "UPDATE sums SET version = 5 WHERE key = 'b'; DELETE FROM sums WHERE version = 0",
                vec![("a", 0), ("b", 5)],
            ),
            (insert, "UPDATE sums SET version = 5 WHERE key = 'b'", vec![("a", 1), ("b", 5)]),
            (insert, "DELETE FROM sums WHERE key = 'b'", vec![("a", 1), ("b", 0)]),
            (
                insert,
                "DELETE FROM sums WHERE key = 'b'; INSERT INTO sums VALUES ('b', '1', 7, 1, now())",
                vec![("a", 1), ("b", 7)],
            ),
            (insert, "SELECT", vec![("a", 1), ("b", 1)]),
        ] {
            let (url, mut client) = prepared();
            client.batch_execute(before).unwrap();
            let mut one = client.transaction().unwrap();
            lock_all(&mut one, &["b"]);
            let (said, heard) = mpsc::channel();
            let of_other = url.clone();
            let other = thread::spawn(move || {
                let mut client = Client::connect(&of_other, NoTls).unwrap();
                let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
                said.send(pid).unwrap();
                let mut tx = client.transaction().unwrap();
                lock_all(&mut tx, &["b", "a"]);
                rows(&mut tx)
            });
            let pid = heard.recv().unwrap();
            let mut watcher = Client::connect(&url, NoTls).unwrap();
            while watcher.query_one("SELECT cardinality(pg_blocking_pids($1))", &[&pid]).unwrap().get::<_, i32>(0) == 0
            {
                thread::yield_now();
            }
            one.batch_execute(meanwhile).unwrap();
            one.commit().unwrap();
            let expected: Vec<_> = after.into_iter().map(|(key, version)| (key.to_owned(), version)).collect();
            assert_eq!(other.join().unwrap(), expected, "{before}; {meanwhile}");
        }
    }

    #[test]
    fn lock_writes_nothing_for_rows_that_exist() {
        let (_, mut client) = prepared();
        client.batch_execute("INSERT INTO sums VALUES ('a', '1', 1, 1, now())").unwrap();
        let place = |client: &mut Client| -> String {
            client.query_one("SELECT ctid::text || xmin::text FROM sums", &[]).unwrap().get(0)
        };
        let before = place(&mut client);
        let mut tx = client.transaction().unwrap();
        lock_all(&mut tx, &["a"]);
        tx.commit().unwrap();
        assert_eq!(place(&mut client), before);
    }

    /// Rows that another transaction has changed, deleted or created are not written.
    #[test]
    fn rows_that_were_changed_are_not_written() {
        let (_, mut client) = prepared();
        let mut write = |before: &str, state: Option<&str>, was: Option<(i64, i64)>| -> i64 {
            let mut tx = client.transaction().unwrap();
            tx.batch_execute(before).unwrap();
            let (version, position) = was.unzip();
            let params: [&(dyn postgres::types::ToSql + Sync); 6] =
                [&vec!["a"], &vec![state], &vec![9_i64], &vec![9_i64], &vec![version], &vec![position]];
            tx.query_one(&super::write(&table()), &params).unwrap().get(0)
        };
        let exists = "INSERT INTO sums VALUES ('a', '1', 3, 4, now())";
        for state in [Some("2"), None] {
            for (before, was, written) in
                [(exists, Some((3, 4)), 1), (exists, Some((3, 5)), 0), (exists, Some((2, 4)), 0), ("", Some((3, 4)), 0)]
            {
                assert_eq!(write(before, state, was), written, "{before} {was:?} {state:?}");
            }
        }
        assert_eq!(write("", Some("2"), None), 1);
        assert_eq!(write(exists, Some("2"), None), 0);
    }

    /// Whatever the statistics say, the table is not read as a whole.
    #[test]
    fn many_keys_are_found_by_the_index() {
        let (_, mut client) = prepared();
        client
            .batch_execute(
                "INSERT INTO sums SELECT g, '1', 1, 1, now() FROM generate_series(1, 100) AS g; ANALYZE sums",
            )
            .unwrap();
        client
            .batch_execute("INSERT INTO sums SELECT g, '1', 1, 1, now() FROM generate_series(101, 20000) AS g")
            .unwrap();
        let statements = Statements::new(&table());
        let many = statements.of(2_000);
        let mut tx = client.transaction().unwrap();
        tx.query_one(many.prepare.unwrap(), &[]).unwrap();
        let write_params = "text[], text[], bigint[], bigint[], bigint[], bigint[]";
        for (name, types, sql) in [("r", "text[]", &many.read), ("w", write_params, &many.write)] {
            tx.batch_execute(&format!(
                "SET LOCAL plan_cache_mode = force_generic_plan; PREPARE {name} ({types}) AS {sql}"
            ))
            .unwrap();
            let nulls = vec!["NULL"; types.split(',').count()].join(", ");
            let plan = tx.simple_query(&format!("EXPLAIN EXECUTE {name} ({nulls})")).unwrap();
            let plan: String = plan
                .iter()
                .filter_map(|line| match line {
                    postgres::SimpleQueryMessage::Row(row) => Some(format!("{}\n", row.get(0).unwrap())),
                    _ => None,
                })
                .collect();
            assert!(plan.contains("Index") && !plan.contains("Seq Scan on sums"), "{plan}");
        }
    }
}
