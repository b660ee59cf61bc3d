//! The content of the tables of read models, and how two states differ.

use postgres::Client;

use super::error::Error;
use crate::error::describe;

/// The tables that are compared.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) names: Vec<String>,
    /// Columns that may differ.
    pub(super) ignored: Vec<String>,
}

/// The rows of each table, each row as JSON, in an order that does not depend on the order of
/// writing.
#[derive(Debug)]
pub(super) struct Rows(Vec<(String, Vec<String>)>);

impl Tables {
    pub(super) fn read(&self, client: &mut Client) -> Result<Rows, Error> {
        let read = |name: &String| {
            let sql = format!("SELECT (to_jsonb(read) - $1::text[])::text FROM {name} AS read");
            let rows = client
                .query(&sql, &[&self.ignored])
                .and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>())
                .map_err(|error| Error::new(format!("table {name} cannot be read: {}", describe(&error))));
            rows.map(|mut rows| {
                rows.sort_unstable();
                (name.clone(), rows)
            })
        };
        self.names.iter().map(read).collect::<Result<_, _>>().map(Rows)
    }
}

impl Rows {
    /// Returns the first table that has no rows.
    pub(super) fn first_empty(&self) -> Option<&str> {
        self.0.iter().find(|(_, rows)| rows.is_empty()).map(|(name, _)| name.as_str())
    }

    /// Returns the first row that differs from the expected ones, as text.
    pub(super) fn compare(&self, found: &Self) -> Result<(), String> {
        for ((name, expected), (_, found)) in self.0.iter().zip(&found.0) {
            let (missing, added) = (first_not_in(expected, found), first_not_in(found, expected));
            if missing.is_some() || added.is_some() {
                let shown = |row: Option<&String>| row.map_or("no such row", String::as_str).to_owned();
                return Err(format!(
                    "table {name} differs from what one partition writes, which handles all events in order\n  \
                       in order: {}\n  \
                       here:     {}\n\
                     Only the events of one aggregate arrive in order, and a batch may be handled again.",
                    shown(missing),
                    shown(added)
                ));
            }
        }
        Ok(())
    }
}

/// Returns the first of these sorted rows that the others do not contain as often.
fn first_not_in<'a>(rows: &'a [String], others: &[String]) -> Option<&'a String> {
    let mut others = others.iter().peekable();
    rows.iter().find(|row| {
        while others.next_if(|other| other < row).is_some() {}
        others.next_if(|other| other == row).is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&str]) -> Rows {
        Rows(vec![("orders".to_owned(), rows.iter().map(|row| (*row).to_owned()).collect())])
    }

    #[test]
    fn the_first_row_that_differs_is_shown() {
        for (expected, found, shown) in [
            (&["a", "b"][..], &["a", "b"][..], None),
            (&["a", "b", "d"], &["a", "c", "d"], Some(["in order: b\n", "here:     c\n"])),
            (&["a", "a"], &["a"], Some(["in order: a\n", "here:     no such row\n"])),
            (&["a"], &["a", "a", "b"], Some(["in order: no such row\n", "here:     a\n"])),
            (&["b"], &[], Some(["in order: b\n", "here:     no such row\n"])),
        ] {
            let difference = rows(expected).compare(&rows(found)).err();
            assert_eq!(difference.is_some(), shown.is_some(), "{expected:?} {found:?}");
            for part in shown.into_iter().flatten() {
                assert!(difference.as_ref().is_some_and(|text| text.contains(part)), "{difference:?}");
            }
        }
    }
}
