//! Verifies that a table of events is acceptable, whichever program created it. This happens at the
//! migration, at every start, and with each new connection of a tailer. An error names the
//! requirement that is not met, and what to do.

use postgres::GenericClient;
use postgres::types::Type;

use super::names::Names;
use super::sequence;
use crate::error::Error;

/// A column, and the types with which the library can work.
struct Column {
    name: &'static str,
    types: &'static [&'static str],
    may_be_null: bool,
}

const fn required(name: &'static str, types: &'static [&'static str]) -> Column {
    Column { name, types, may_be_null: false }
}

const fn optional(name: &'static str, types: &'static [&'static str]) -> Column {
    Column { name, types, may_be_null: true }
}

/// The columns the library reads or writes.
const EVENT_COLUMNS: &[Column] = &[
    required("global_position", &["bigint"]),
    required("bounded_context", TEXT),
    required("aggregate_type", TEXT),
    required("aggregate_id", TEXT),
    required("aggregate_version", &["bigint"]),
    required("event_id", &["uuid"]),
    required("event_type", TEXT),
    required("event_version", &["integer"]),
    required("payload", &["bytea"]),
    optional("trace_id", TEXT),
    optional("correlation_id", TEXT),
    optional("causation_id", TEXT),
    optional("metadata", &["jsonb", "json"]),
    required("created_at", &["timestamp with time zone"]),
];

const HEAD_COLUMNS: &[Column] = &[
    optional("bounded_context", TEXT),
    optional("aggregate_type", TEXT),
    optional("aggregate_id", TEXT),
    optional("aggregate_version", &["bigint"]),
    optional("updated_at", &["timestamp with time zone"]),
];

const TEXT: &[&str] = &["text", "character varying"];

/// The encodings in which every text can be converted to UTF-8. Workers read all texts in UTF-8.
const ENCODINGS: &[&str] = &[
    "UTF8", "LATIN1", "LATIN2", "LATIN4", "LATIN5", "LATIN6", "LATIN7", "LATIN8", "LATIN9", "LATIN10", "KOI8R",
    "KOI8U", "WIN866",
];

/// Refuses tables of a shape with which the library cannot work. Reads only catalogs.
pub(crate) fn shape(client: &mut impl GenericClient, names: &Names) -> Result<(), Error> {
    tables(client, names)?;
    sequence(client, names)
}

pub(super) fn tables(client: &mut impl GenericClient, names: &Names) -> Result<(), Error> {
    encoding(client)?;
    kind(client, names)?;
    columns(client, &names.events().to_string(), names.events_name(), EVENT_COLUMNS)?;
    columns(client, &names.aggregate_heads().to_string(), names.aggregate_heads_name(), HEAD_COLUMNS)?;
    uniqueness(client, names)
}

/// Refuses metadata of type `json` if a projection filters by it: a single event that `jsonb`
/// cannot hold (because of a NUL character, say) would fail every statement that reads past it.
pub(crate) fn metadata_is_jsonb(client: &mut impl GenericClient, names: &Names, projection: &str) -> Result<(), Error> {
    let events = names.events().to_string();
    let row = client
        .query_typed_opt(
            "SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = 'metadata'",
            &[(&events, Type::TEXT)],
        )
        .map_err(Error::database("reading the type of the metadata"))?;
    match row.map(|row| row.get::<_, String>(0)) {
        Some(found) if found != "jsonb" => refuse(format!(
            "column metadata of {events} has type {found}, and the scope of projection {projection:?} filters by it, which needs jsonb: \
             ALTER TABLE {events} ALTER COLUMN metadata TYPE jsonb USING metadata::jsonb, or remove that condition"
        )),
        _ => Ok(()),
    }
}

fn refuse(problem: String) -> Result<(), Error> {
    Err(Error::Schema { problem })
}

fn missing(table: &str) -> String {
    format!(
        "there is no table {table}, which the migration creates only together with the orchestrator's tables: create it, or \
         give both a schema or a prefix of their own"
    )
}

fn encoding(client: &mut impl GenericClient) -> Result<(), Error> {
    let row = client
        .query_typed_one("SELECT current_setting('server_encoding')", &[])
        .map_err(Error::database("reading the database's encoding"))?;
    let encoding: &str = row.get(0);
    if ENCODINGS.contains(&encoding) {
        return Ok(());
    }
    Err(Error::UnsupportedServer {
        problem: format!(
            "the database has encoding {encoding}, which may hold texts that cannot be converted to UTF-8, and no event after such a text \
             could be read: create a database with encoding UTF8, and move the tables there"
        ),
    })
}

/// Refuses columns the library cannot read or write, naming column and type.
fn columns(client: &mut impl GenericClient, qualified: &str, table: &str, expected: &[Column]) -> Result<(), Error> {
    // Since PostgreSQL 18, a column may be marked as NOT NULL before its rows have been checked.
    let rows = client
        .query_typed(
            "SELECT a.attname, format_type(a.atttypid, NULL), a.attnotnull AND NOT EXISTS (
                        SELECT FROM pg_constraint n WHERE n.conrelid = a.attrelid AND n.contype = 'n' AND n.conkey = ARRAY[a.attnum]
                        AND NOT n.convalidated),
                    c.collname, coalesce(c.collisdeterministic, true)
             FROM pg_attribute a LEFT JOIN pg_collation c ON c.oid = a.attcollation
             WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
            &[(&qualified, Type::TEXT)],
        )
        .map_err(Error::database("reading the columns"))?;
    if rows.is_empty() {
        return refuse(missing(qualified));
    }
    for Column { name, types, may_be_null } in expected {
        let Some(row) = rows.iter().find(|row| row.get::<_, &str>(0) == *name) else {
            return refuse(format!("table {table} has no column {name} (of type {})", types.join(" or ")));
        };
        let found: &str = row.get(1);
        if !types.contains(&found) {
            return refuse(format!("column {name} of {table} has type {found}, and {} is needed", types.join(" or ")));
        }
        if !may_be_null && !row.get::<_, bool>(2) {
            return refuse(format!(
                "column {name} of {table} may be NULL, and an event without it cannot be read: \
                 ALTER TABLE {qualified} ALTER COLUMN {name} SET NOT NULL (and, from PostgreSQL 18 on, VALIDATE the constraint)"
            ));
        }
        if !row.get::<_, bool>(4) {
            return refuse(format!(
                "column {name} of {table} has the nondeterministic collation {:?}, under which the server considers different texts equal and \
                 a worker does not: ALTER TABLE {qualified} ALTER COLUMN {name} TYPE {found} COLLATE \"C\"",
                row.get::<_, &str>(3)
            ));
        }
    }
    Ok(())
}

/// Refuses relations whose writers need not hold a lock on the events table or its partitions, and
/// rows that a policy hides.
fn kind(client: &mut impl GenericClient, names: &Names) -> Result<(), Error> {
    let events = names.events().to_string();
    let row = client
        .query_typed_opt(
            "SELECT c.relkind::text, c.relispartition,
                    (SELECT i.inhrelid::regclass::text FROM pg_inherits i WHERE i.inhparent = c.oid AND c.relkind = 'r' LIMIT 1),
                    (SELECT t.relid::regclass::text FROM pg_partition_tree(c.oid) t JOIN pg_class p ON p.oid = t.relid
                     WHERE p.relkind NOT IN ('r', 'p') LIMIT 1)
             FROM pg_class c WHERE c.oid = to_regclass($1)",
            &[(&events, Type::TEXT)],
        )
        .map_err(Error::database("reading what kind of a table the events are in"))?;
    let Some(row) = row else { return refuse(missing(&events)) };
    let relation = match row.get(0) {
        "r" | "p" => None,
        "v" | "m" => Some("a view"),
        "f" => Some("a foreign table"),
        _ => Some("not a table"),
    };
    if let Some(relation) = relation {
        return refuse(format!(
            "{events} is {relation}. Writers lock other tables, so a worker cannot know which events are still to come: name the table \
             that they write to, with Names::events_table()"
        ));
    }
    if row.get(1) {
        return refuse(format!(
            "{events} is a partition of another table. Writers to that table lock the partition only after they have got their \
             positions: name the partitioned table, with Names::events_table()"
        ));
    }
    if let Some(child) = row.get::<_, Option<String>>(2) {
        return refuse(format!(
            "{events} has the child {child} (INHERITS). Writers to the child do not lock {events}: make it a partitioned table, or detach \
             the child with ALTER TABLE {child} NO INHERIT {events}"
        ));
    }
    if let Some(partition) = row.get::<_, Option<String>>(3) {
        return refuse(format!(
            "the partition {partition} of {events} is a foreign table. Writers to it on the other server lock nothing on this one: \
             ALTER TABLE {events} DETACH PARTITION {partition}"
        ));
    }
    visible(client, &[events])
}

/// Refuses tables if a policy hides their rows from the user.
pub(super) fn visible(client: &mut impl GenericClient, tables: &[String]) -> Result<(), Error> {
    let hidden = client
        .query_typed_opt(
            "SELECT name, current_user::text FROM unnest($1) WITH ORDINALITY AS wanted (name, number)
             WHERE row_security_active(to_regclass(name)) ORDER BY number LIMIT 1",
            &[(&tables, Type::TEXT_ARRAY)],
        )
        .map_err(Error::database("reading whether row-level security applies"))?;
    let Some(row) = hidden else { return Ok(()) };
    refuse(format!(
        "row-level security on {table} applies to user {user}, and hides rows from it: ALTER ROLE {user} BYPASSRLS, or \
         ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
        table = row.get::<_, String>(0),
        user = row.get::<_, String>(1)
    ))
}

/// Refuses positions that need not be unique: a batch could end between two events with the same
/// position, and the second event would be skipped.
fn uniqueness(client: &mut impl GenericClient, names: &Names) -> Result<(), Error> {
    let events = names.events().to_string();
    let row = client
        .query_typed_one(
            "SELECT EXISTS (
                 SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = 'global_position'
                 WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
                 AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum)",
            &[(&events, Type::TEXT)],
        )
        .map_err(Error::database("reading the indexes of the events"))?;
    if row.get(0) {
        return Ok(());
    }
    refuse(format!(
        "no unique index guarantees that the positions of {events} are unique: CREATE UNIQUE INDEX ON {events} (global_position); a partitioned \
         table has to be partitioned by ranges of global_position"
    ))
}

/// Refuses a sequence that does not hand out each position once and in ascending order. The safe
/// head relies on this.
pub(super) fn sequence(client: &mut impl GenericClient, names: &Names) -> Result<(), Error> {
    let found = sequence::find(client, names).map_err(Error::database("reading the sequence of the positions"))?;
    let Some(sequence) = found else { return Ok(()) };
    let name = &sequence.name;
    let problem = if sequence.cache > 1 {
        format!(
            "sequence {name} has CACHE {}, so positions are not handed out in order and events could be missed: \
             ALTER SEQUENCE {name} CACHE 1",
            sequence.cache
        )
    } else if sequence.increment < 1 {
        format!("sequence {name} counts down (INCREMENT {}): ALTER SEQUENCE {name} INCREMENT 1", sequence.increment)
    } else if sequence.minimum < 1 {
        format!(
            "sequence {name} has MINVALUE {}, and positions begin with 1, so events could be missed: ALTER SEQUENCE {name} MINVALUE 1",
            sequence.minimum
        )
    } else if sequence.cycles {
        format!("sequence {name} starts again at its end (CYCLE): ALTER SEQUENCE {name} NO CYCLE")
    } else {
        return Ok(());
    };
    Err(Error::UnsupportedServer { problem })
}

/// Refuses positions that no worker would process: those below 1, and those above what the sequence
/// has handed out, because it will hand out the positions below them as well.
pub(super) fn positions(client: &mut impl GenericClient, names: &Names) -> Result<(), Error> {
    let doing = "reading the positions of the events";
    let (newest, last) = sequence::positions(client, names).map_err(Error::database(doing))?;
    let lowest: Option<i64> = client
        .query_typed_one(&names.sql("SELECT min(global_position) FROM {events}"), &[])
        .map_err(Error::database(doing))?
        .get(0);
    if let Some(lowest) = lowest.filter(|lowest| *lowest < 1) {
        return refuse(format!(
            "{} has an event at position {lowest}, and positions begin with 1: no projection would handle it. Delete it, or give it a position of its own",
            names.events()
        ));
    }
    match last.filter(|last| *last < newest) {
        Some(last) => refuse(format!(
            "{events} has an event at position {newest}, and the sequence of the positions is at {last}: the positions between them are still \
             to be handed out, and their events would be missed. Delete the event, or advance the sequence: \
             SELECT setval(pg_get_serial_sequence('{events}', 'global_position'), {newest})",
            events = names.events()
        )),
        None => Ok(()),
    }
}
