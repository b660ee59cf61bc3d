//! A table of a read model, and its copy.

use std::fmt;

/// A live table, as it was when its name was resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
}

impl Table {
    /// The qualified and quoted name, for SQL.
    pub(crate) fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }
}

/// The qualified name for people. A name that SQL would need in quotes has them.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", readable(&self.schema), readable(&self.name))
    }
}

/// The copy of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) table: Table,
    /// The copy's own oid. Its name is that of the table.
    pub(crate) oid: u32,
}

/// Quotes an identifier for SQL.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a name with its schema for SQL.
pub(super) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

fn readable(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if is_plain { name.to_owned() } else { identifier(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_sql_and_readable_for_people() {
        for (schema, name, quoted, shown) in [
            ("public", "orders", r#""public"."orders""#, "public.orders"),
            ("My shop", "a\"b.c", r#""My shop"."a""b.c""#, r#""My shop"."a""b.c""#),
            ("s", "1st", r#""s"."1st""#, r#"s."1st""#),
        ] {
            let table = Table { oid: 1, schema: schema.to_owned(), name: name.to_owned() };
            assert_eq!((table.quoted(), table.to_string()), (quoted.to_owned(), shown.to_owned()));
        }
    }
}
