//! Resolves the names of a projection's tables.

use std::collections::BTreeSet;

use postgres::types::Type;
use postgres::{GenericClient, Row};

use super::refusal::Refusal;
use super::table::Table;
use crate::store::names::{Names, Own};

/// Resolves the names of a projection's tables as a handler's statements would resolve them,
/// without a schema, on the search path of this session.
///
/// A name is exactly as in the catalog: with its capitals, and without quotes. This statement runs
/// under the application's settings, so each name in it is qualified.
pub(crate) fn find(client: &mut impl GenericClient, library: &Names, names: &[&str]) -> Result<Vec<Table>, Refusal> {
    let refuse = |name: &str, problem: &str| Refusal::Name { name: name.to_owned(), problem: problem.to_owned() };
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() {
            return Err(refuse(name, "is empty: name the table, as the catalog has it, without a schema and quotes"));
        }
        // The server would refuse the whole statement.
        if name.contains('\0') {
            return Err(refuse(name, "contains a NUL character: no table can have that name"));
        }
        if !seen.insert(name) {
            return Err(refuse(name, "is named twice: name each table once"));
        }
    }
    let mut reserved: Vec<String> = Own::ALL.iter().map(|own| library.own(*own).to_string()).collect();
    reserved.extend([library.events().to_string(), library.aggregate_heads().to_string()]);
    let rows = client.query_typed(
        "SELECT class.oid, namespace.nspname::pg_catalog.text, class.relname::pg_catalog.text, class.relkind::pg_catalog.text,
                class.relpersistence::pg_catalog.text,
                class.oid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT pg_catalog.to_regclass(own)::pg_catalog.oid FROM pg_catalog.unnest($2) AS own)),
                pg_catalog.current_setting('search_path')
         FROM pg_catalog.unnest($1) WITH ORDINALITY AS wanted (name, number)
         LEFT JOIN pg_catalog.pg_class AS class
             ON class.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(pg_catalog.quote_ident(wanted.name))
             -- A longer name is cut off.
             AND class.relname::pg_catalog.text OPERATOR(pg_catalog.=) wanted.name
         LEFT JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid OPERATOR(pg_catalog.=) class.relnamespace
         ORDER BY wanted.number",
        &[(&names, Type::TEXT_ARRAY), (&reserved, Type::TEXT_ARRAY)],
    )?;
    names.iter().zip(&rows).map(|(name, row)| table(row).map_err(|problem| refuse(name, &problem))).collect()
}

/// The table in a row, or what is wrong with the name.
fn table(row: &Row) -> Result<Table, String> {
    let Some(oid) = row.get(0) else {
        return Err(format!(
            "is not found on the search path {:?}: create it, or write its name as the catalog has it, without a schema and quotes",
            row.get::<_, &str>(6)
        ));
    };
    let table = Table { oid, schema: row.get(1), name: row.get(2) };
    let is_of_library: Option<bool> = row.get(5);
    if is_of_library == Some(true) {
        return Err(format!(
            "is {table}, which belongs to the library: a projection's tables are those that only its handler writes to"
        ));
    }
    let is_of_server = table.schema.starts_with("pg_") || table.schema == "information_schema";
    let kind = match (row.get(3), row.get(4)) {
        (_, "t") => "a temporary relation",
        _ if is_of_server => "a relation of the server itself",
        ("r", _) => return Ok(table),
        ("v", _) => "a view",
        ("m", _) => "a materialized view",
        ("p", _) => "a partitioned table",
        ("f", _) => "a foreign table",
        ("S", _) => "a sequence",
        ("i" | "I", _) => "an index",
        ("c", _) => "a composite type",
        _ => "not a table",
    };
    Err(format!("is {table}, {kind}: only ordinary tables can be rebuilt"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    fn refused(client: &mut postgres::Client, names: &[&str]) -> String {
        find(client, &Names::default(), names).unwrap_err().to_string()
    }

    #[test]
    fn names_resolve_as_in_a_handler() {
        let mut client = testing::connect();
        client
            .batch_execute(
                r#"CREATE SCHEMA "My app"; CREATE SCHEMA b;
                   CREATE TABLE "My app"."Orders.2" (); CREATE TABLE b.both (); CREATE TABLE public.both (); CREATE TABLE b."a""b'c" ();
                   CREATE FUNCTION b.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS 'SELECT NULL::text';
                   SET search_path = "My app", b, public, pg_catalog"#,
            )
            .unwrap();
        let found = find(&mut client, &Names::default(), &["both", "Orders.2", "a\"b'c"]).unwrap();
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["b.both", r#""My app"."Orders.2""#, r#"b."a""b'c""#]);
        for table in &found {
            let oid: u32 = client
                .query_one(&format!("SELECT '{}'::regclass::oid", table.quoted().replace('\'', "''")), &[])
                .unwrap()
                .get(0);
            assert_eq!(oid, table.oid);
        }
        client.batch_execute("SET search_path = public").unwrap();
        assert_eq!(find(&mut client, &Names::default(), &["both"]).unwrap()[0].schema, "public");
        assert!(
            refused(&mut client, &["Orders.2"])
                .contains("\"Orders.2\" of a projection's tables() is not found on the search path \"public\"")
        );
        assert_eq!(find(&mut client, &Names::default(), &[]).unwrap(), []);
    }

    #[test]
    fn names_that_are_no_table_are_refused() {
        let mut client = testing::connect_with_projection();
        client
            .batch_execute(
                "CREATE TABLE t (id serial PRIMARY KEY); CREATE VIEW v AS SELECT 1 AS one; CREATE MATERIALIZED VIEW m AS SELECT 1 AS one;
                 CREATE TABLE p (a int) PARTITION BY LIST (a); CREATE TYPE c AS (a int); CREATE TEMPORARY TABLE x ();
                 CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE f (a int) SERVER s",
            )
            .unwrap();
        let long = "x".repeat(63);
        client.batch_execute(&format!("CREATE TABLE {long} ()")).unwrap();
        let longer = format!("{long}y");
        for (names, problem) in [
            (vec!["t", "missing"], "\"missing\" of a projection's tables() is not found"),
            (vec!["T"], "is not found"),
            (vec!["public.t"], "is not found"),
            (vec!["\"t\""], "is not found"),
            (vec![&longer], "is not found"),
            (vec!["v"], "is public.v, a view: only ordinary tables"),
            (vec!["m"], "a materialized view"),
            (vec!["p"], "a partitioned table"),
            (vec!["c"], "a composite type"),
            (vec!["f"], "a foreign table"),
            (vec!["t_id_seq"], "a sequence"),
            (vec!["t_pkey"], "an index"),
            (vec!["x"], "a temporary relation"),
            (vec!["pg_class"], "a relation of the server itself"),
            (vec!["t", "t"], "is named twice"),
            (vec![""], "is empty"),
            (vec!["a\0b"], "contains a NUL character"),
            (vec!["events"], "is public.events, which belongs to the library"),
            (vec!["aggregate_heads"], "belongs to the library"),
            (vec!["orchestrator_checkpoints"], "belongs to the library"),
        ] {
            let text = refused(&mut client, &names);
            assert!(text.contains(problem), "{names:?}: {text}");
        }
    }
}
