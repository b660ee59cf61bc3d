//! The form of a fold's table, and the statements that create it. Pure.

use crate::error::Error;
use crate::store::names;

/// The columns that each table has, with their types.
pub(super) const OWN: [(&str, &str); 5] =
    [("key", "text"), ("state", "jsonb"), ("version", "int8"), ("position", "int8"), ("updated_at", "timestamptz")];

/// The table of a fold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoldTable {
    /// The name of the fold.
    pub(crate) fold: String,
    pub(crate) name: String,
    /// The extracted columns.
    pub(crate) columns: Vec<FoldColumn>,
}

/// An extracted column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoldColumn {
    pub(crate) name: String,
    pub(crate) sql_type: String,
}

impl FoldColumn {
    /// The type without its modifiers. A cast to a type with modifiers would cut a text off in
    /// silence; an assignment to the column does not.
    pub(super) fn plain_type(&self) -> String {
        let mut depth = 0_u32;
        let outside = self.sql_type.chars().filter(|c| match c {
            '(' => {
                depth += 1;
                false
            }
            ')' => {
                depth = depth.saturating_sub(1);
                false
            }
            _ => depth == 0,
        });
        outside.collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub(super) fn quoted(&self) -> String {
        quoted(&self.name)
    }
}

impl FoldTable {
    pub(crate) fn quoted(&self) -> String {
        quoted(&self.name)
    }

    /// Refuses names and types that cannot be those of a table.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let fold = &self.fold;
        names::check(&format!("table of fold {fold:?}"), &self.name)?;
        for (number, column) in self.columns.iter().enumerate() {
            let FoldColumn { name, sql_type } = column;
            names::check(&format!("column of fold {fold:?}"), name)?;
            let refuse = |value: &str, problem: String| {
                Err(Error::config(format!("column {name:?} of fold {fold:?}"), value, problem))
            };
            if OWN.iter().any(|(own, _)| own == name) {
                return refuse(
                    "not possible",
                    "each table of a fold has a column of this name: use another".to_owned(),
                );
            }
            if self.columns.iter().take(number).any(|other| other.name == *name) {
                return refuse("there twice", "give each column another name".to_owned());
            }
            let is_allowed = |c: char| c.is_alphanumeric() || " _.,()[]".contains(c);
            if let Some(c) = sql_type.chars().find(|c| !is_allowed(*c)) {
                return refuse(
                    sql_type,
                    format!("{c:?} is not allowed in a type: use one such as bigint or numeric(12,2)"),
                );
            }
            if column.plain_type().is_empty() {
                return refuse(sql_type, "it must be a type such as bigint or text".to_owned());
            }
        }
        Ok(())
    }

    /// The statement that creates the table.
    pub(super) fn create(&self) -> String {
        let extracted = self.columns.iter().map(|column| format!(",\n    {} {}", column.quoted(), column.sql_type));
        // The free space lets most updates stay on their page, so that no index has to be written.
        format!(
            "CREATE TABLE IF NOT EXISTS {} (\n    key text COLLATE \"C\" PRIMARY KEY,\n    state jsonb NOT NULL,\n    \
             version bigint NOT NULL,\n    position bigint NOT NULL,\n    updated_at timestamptz NOT NULL{}\n) \
             WITH (fillfactor = 70)",
            self.quoted(),
            extracted.collect::<String>()
        )
    }

    /// The statement that adds an extracted column.
    pub(super) fn add(&self, column: &FoldColumn) -> String {
        format!("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}", self.quoted(), column.quoted(), column.sql_type)
    }

    /// The statements for a tool that migrates. They may be executed each time.
    pub(crate) fn sql(&self) -> String {
        let add = self.columns.iter().map(|column| self.add(column));
        let statements: Vec<String> = [self.create()].into_iter().chain(add).collect();
        format!("{};\n", statements.join(";\n"))
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, columns: &[(&str, &str)]) -> FoldTable {
        let column =
            |(name, sql_type): &(&str, &str)| FoldColumn { name: (*name).into(), sql_type: (*sql_type).into() };
        FoldTable { fold: "sums".into(), name: name.into(), columns: columns.iter().map(column).collect() }
    }

    #[test]
    fn bad_names_and_types_are_refused_by_name() {
        table("Order", &[("user", "numeric(12, 2)"), ("b", "text[]")]).validate().unwrap();
        for (table, words) in [
            (table("", &[]), "table of fold \"sums\""),
            (table("a\"b", &[]), "'\"' is not allowed"),
            (table("a.b", &[]), "'.' is not allowed"),
            (table(&"x".repeat(64), &[]), "64 bytes"),
            (table("t", &[("state", "text")]), "column \"state\" of fold \"sums\" is not possible"),
            (table("t", &[("a", "text"), ("a", "int")]), "there twice"),
            (table("t", &[("a", "text; DROP TABLE x")]), "';' is not allowed"),
            (table("t", &[("a", "text DEFAULT 'x'")]), "not allowed in a type"),
            (table("t", &[("a", "(3)")]), "must be a type"),
            (table("t", &[("a b", "text")]), "' ' is not allowed"),
        ] {
            let error = table.validate().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn types_lose_their_modifiers_in_casts() {
        for (sql_type, plain) in [
            ("numeric(12, 2)", "numeric"),
            ("timestamp (3) with time zone", "timestamp with time zone"),
            ("varchar(3)[]", "varchar[]"),
            ("text", "text"),
        ] {
            assert_eq!(FoldColumn { name: "a".into(), sql_type: sql_type.into() }.plain_type(), plain);
        }
    }
}
