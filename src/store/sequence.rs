//! The sequence that hands out positions, if there is one.

use postgres::GenericClient;
use postgres::types::Type;

use super::names::Names;

/// The sequence behind the positions of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PositionSequence {
    /// Qualified and quoted.
    pub(crate) name: String,
    /// Whether the user may read its last value.
    pub(crate) is_readable: bool,
    pub(crate) cache: i64,
    pub(crate) increment: i64,
    pub(crate) minimum: i64,
    pub(crate) cycles: bool,
}

/// The last position that the sequence has handed out, in SQL: 0 before the first, if that is 1,
/// and NULL if there is no sequence.
///
/// It is read from the sequence itself, because the function `pg_sequence_last_value` waits for an
/// `ALTER SEQUENCE` that is in progress. A new value is visible at once, not through a snapshot.
pub(super) fn last_sql(sequence: Option<&PositionSequence>) -> String {
    let Some(PositionSequence { name, .. }) = sequence else { return "NULL::bigint".into() };
    format!("(SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {name})")
}

/// Finds the sequence that the column's default calls, or the one that the column owns. `None` if
/// positions are handed out in another way.
pub(crate) fn find(
    client: &mut impl GenericClient,
    names: &Names,
) -> Result<Option<PositionSequence>, postgres::Error> {
    // The sequence that the default calls comes first: the column may own another one.
    let sql = "
        SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), has_sequence_privilege(s.seqrelid, 'SELECT'),
               s.seqcache, s.seqincrement, s.seqmin, s.seqcycle
        FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL (SELECT s.seqrelid IN (
            SELECT d.refobjid FROM pg_attribute a JOIN pg_attrdef v ON v.adrelid = a.attrelid AND v.adnum = a.attnum
            JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = v.oid AND d.refclassid = 'pg_class'::regclass
            WHERE a.attrelid = to_regclass($1) AND a.attname = 'global_position') AS is_asked) AS asked
        WHERE is_asked OR s.seqrelid = (
            SELECT pg_get_serial_sequence($1, 'global_position')::regclass FROM pg_attribute a
            WHERE a.attrelid = to_regclass($1) AND a.attname = 'global_position' AND a.attidentity <> '')
        ORDER BY is_asked DESC, s.seqrelid LIMIT 1";
    let row = client.query_typed_opt(sql, &[(&names.events().to_string(), Type::TEXT)])?;
    Ok(row.map(|row| PositionSequence {
        name: row.get(0),
        is_readable: row.get(1),
        cache: row.get(2),
        increment: row.get(3),
        minimum: row.get(4),
        cycles: row.get(5),
    }))
}

/// Returns the highest position of an event and the last one ever handed out. The second is `None`
/// if it is not known.
pub(crate) fn positions(client: &mut impl GenericClient, names: &Names) -> Result<(i64, Option<i64>), postgres::Error> {
    let last = last_sql(readable(client, names)?.as_ref());
    let sql =
        names.sql_with("SELECT coalesce((SELECT max(global_position) FROM {events}), 0), {last}", &[("last", &last)]);
    let row = client.query_typed_one(&sql, &[])?;
    Ok((row.get(0), row.get(1)))
}

/// Returns the sequence, if this user can read it.
pub(crate) fn readable(
    client: &mut impl GenericClient,
    names: &Names,
) -> Result<Option<PositionSequence>, postgres::Error> {
    Ok(find(client, names)?.filter(|sequence| sequence.is_readable))
}
