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
        _ = write!(arrays, ", ${}::pg_catalog.text[]", number + 7);
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
             SELECT * FROM pg_catalog.unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.int8[], $4::pg_catalog.int8[],
                                             $5::pg_catalog.int8[], $6::pg_catalog.int8[]{arrays})
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
