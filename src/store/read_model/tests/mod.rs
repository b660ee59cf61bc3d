//! Tests of copies against a real server.

mod generator;
mod obstacles;
mod properties;
mod replacing;
mod snapshot;
mod swapping;

use postgres::{Client, GenericClient, Transaction};

use super::{Copy, Refusal, Table, create, find};
use crate::store::Names;

/// The tables of these names in schema `app`.
fn tables(client: &mut impl GenericClient, names: &[&str]) -> Vec<Table> {
    client.batch_execute("SET search_path = app").unwrap();
    let found = find(client, &Names::default(), names).unwrap();
    client.batch_execute("RESET search_path").unwrap();
    found
}

/// Executes statements in a transaction and commits it.
fn within<T>(client: &mut Client, statements: impl FnOnce(&mut Transaction<'_>) -> Result<T, Refusal>) -> T {
    let mut tx = client.transaction().unwrap();
    let outcome = statements(&mut tx).unwrap_or_else(|error| panic!("{error}"));
    tx.commit().unwrap();
    outcome
}

/// Verifies the copies, and swaps.
fn swap(tx: &mut Transaction<'_>, copies: &[Copy], old_schema: &str) -> Result<(), Refusal> {
    super::verify(tx, copies)?;
    super::swap(tx, copies, old_schema)
}

/// Creates copies in the schema `copies`.
fn copied(client: &mut Client, tables: &[Table]) -> Vec<Copy> {
    within(client, |tx| create(tx, "copies", tables, &[]))
}

/// The only value of a query.
fn value<T: for<'a> postgres::types::FromSql<'a>>(client: &mut Client, sql: &str) -> T {
    client.query_one(sql, &[]).unwrap().get(0)
}
