//! The columns of an event: how they are selected, and how they are read from a row.

use postgres::Row;
use postgres::types::{FromSql, Type};

use crate::error::BoxError;
use crate::event::{EventBuffer, EventColumns};

/// The index of some columns in a row. [`push`] reads the others, in the order of [`select`].
pub(super) const POSITION: usize = 0;
const WEIGHT: usize = 1;
pub(super) const KEY_OR_NULL: usize = 15;
pub(super) const IS_LAST: usize = 16;

/// The columns that may be large. The others are of a fixed size.
const LARGE: [&str; 9] = [
    "bounded_context",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "payload",
    "trace_id",
    "correlation_id",
    "causation_id",
    "metadata",
];

/// Every column of an event, for [`push`], without the weight.
pub(in crate::store) fn all() -> String {
    select("0", str::to_owned)
}

/// The same columns, for a row that has a `weight`; the large columns are NULL where the condition
/// does not hold.
pub(super) fn withheld_unless(condition: &str) -> String {
    select("weight", |column| format!("CASE WHEN {condition} THEN {column} END"))
}

fn select(weight: &str, large: impl Fn(&str) -> String) -> String {
    let columns = "aggregate_version, event_id, event_version, created_at";
    let large = LARGE.map(large).join(", ");
    format!("global_position, {weight}, {columns}, {large}")
}

/// The weight of an event, which counts towards `batch_bytes`: the bytes that arrive. The server
/// knows the length of a text or a payload without reading it. It has to read metadata, which is
/// stored in another form.
pub(in crate::store) fn weight_sql() -> String {
    LARGE
        .map(|column| match column {
            "metadata" => "coalesce(octet_length(metadata::text), 0)".to_owned(),
            _ => format!("coalesce(octet_length({column}), 0)::bigint"),
        })
        .join(" + ")
}

/// The weight in a row.
pub(super) fn weight(row: &Row) -> Result<usize, postgres::Error> {
    Ok(usize::try_from(row.try_get::<_, i64>(WEIGHT)?).unwrap_or(usize::MAX))
}

/// Adds the event in a row to the buffer.
pub(in crate::store) fn push(buffer: &mut EventBuffer, row: &Row) -> Result<(), postgres::Error> {
    buffer.push(&EventColumns {
        global_position: row.try_get(POSITION)?,
        aggregate_version: row.try_get(2)?,
        event_id: row.try_get(3)?,
        event_version: row.try_get(4)?,
        created_at: row.try_get(5)?,
        bounded_context: row.try_get(6)?,
        aggregate_type: row.try_get(7)?,
        aggregate_id: row.try_get(8)?,
        event_type: row.try_get(9)?,
        payload: row.try_get(10)?,
        trace_id: row.try_get(11)?,
        correlation_id: row.try_get(12)?,
        causation_id: row.try_get(13)?,
        metadata: row.try_get::<_, Option<JsonText<'_>>>(14)?.map(|json| json.0),
    });
    Ok(())
}

/// JSON as the server sends it. The server has checked that it is valid.
struct JsonText<'a>(&'a str);

impl<'a> FromSql<'a> for JsonText<'a> {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        // A jsonb value begins with the version of its format.
        let text = if *ty == Type::JSONB { raw.strip_prefix(&[1]).ok_or("jsonb of an unknown version")? } else { raw };
        Ok(Self(std::str::from_utf8(text)?))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::JSON | Type::JSONB)
    }
}
