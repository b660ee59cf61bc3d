//! A state, as it is read from the table.

use std::error::Error as StdError;

use postgres::types::{FromSql, Type};
use serde::de::DeserializeOwned;

/// A state, as it is read from the table, with the size of its JSON.
pub(super) struct Read<S> {
    pub(super) state: S,
    pub(super) bytes: usize,
}

impl<'a, S: DeserializeOwned> FromSql<'a> for Read<S> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        match raw {
            [1, json @ ..] => Ok(Self { state: serde_json::from_slice(json)?, bytes: json.len() }),
            _ => Err("it is jsonb of an unknown version".into()),
        }
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSONB
    }
}

/// Says that the state of a key cannot be read, and what to do.
pub(super) fn unreadable(table: &str, key: &str, error: &postgres::Error) -> String {
    let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    format!(
        "the state of key {key:?} in table {table:?} cannot be read as the fold's State ({cause}): if State has changed, let serde \
         accept both forms, or raise version() so that the table is rebuilt"
    )
}
