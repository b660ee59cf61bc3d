//! The names of schema and tables. They are validated once, and quoted in every statement.

use std::fmt;

use crate::error::Error;

/// PostgreSQL truncates longer identifiers silently.
const MAX_IDENTIFIER_BYTES: usize = 63;

/// The schema and the names of the tables. Every name is quoted in every statement, so upper case
/// and reserved words are allowed.
///
/// ```
/// use pupsourcing_orchestrator::Names;
///
/// let names = Names::default().schema("orders").prefix("pup_");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    schema: String,
    events_schema: Option<String>,
    events: String,
    aggregate_heads: String,
    prefix: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            schema: "public".into(),
            events_schema: None,
            events: "events".into(),
            aggregate_heads: "aggregate_heads".into(),
            prefix: "orchestrator_".into(),
        }
    }
}

impl Names {
    /// The schema of all tables; the migrations create it. Defaults to `public`.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = name.into();
        self
    }

    /// The schema of the events and aggregate heads, if they have another one. Defaults to
    /// [`schema`](Self::schema).
    pub fn events_schema(mut self, name: impl Into<String>) -> Self {
        self.events_schema = Some(name.into());
        self
    }

    /// The table of events. Defaults to `events`.
    pub fn events_table(mut self, name: impl Into<String>) -> Self {
        self.events = name.into();
        self
    }

    /// The table of aggregate heads. Defaults to `aggregate_heads`.
    pub fn aggregate_heads_table(mut self, name: impl Into<String>) -> Self {
        self.aggregate_heads = name.into();
        self
    }

    /// The prefix of the names of the orchestrator's own tables and of its functions. Defaults to
    /// `orchestrator_`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        check_schema("schema", &self.schema)?;
        if let Some(schema) = &self.events_schema {
            check_schema("events_schema", schema)?;
        }
        check("events_table", &self.events)?;
        check("aggregate_heads_table", &self.aggregate_heads)?;
        // The longest of the library's own names must fit behind the prefix.
        check("prefix", &self.prefix)?;
        check(
            "prefix",
            &format!(
                "{}{}",
                self.prefix,
                Own::ALL.iter().map(|own| own.suffix()).max_by_key(|s| s.len()).unwrap_or("")
            ),
        )?;
        self.check_distinct()
    }

    /// Refuses two tables with the same name.
    fn check_distinct(&self) -> Result<(), Error> {
        let mut taken: Vec<String> = Own::ALL.iter().map(|own| self.own(*own).to_string()).collect();
        for (field, table) in [("events_table", self.events()), ("aggregate_heads_table", self.aggregate_heads())] {
            let name = table.to_string();
            if taken.contains(&name) {
                return Err(Error::config(field, name, "another table already has this name"));
            }
            taken.push(name);
        }
        Ok(())
    }

    pub(crate) fn schema_name(&self) -> &str {
        &self.schema
    }

    pub(crate) fn events_schema_name(&self) -> &str {
        self.events_schema.as_deref().unwrap_or(&self.schema)
    }

    pub(crate) fn events_name(&self) -> &str {
        &self.events
    }

    pub(crate) fn aggregate_heads_name(&self) -> &str {
        &self.aggregate_heads
    }

    pub(crate) fn events(&self) -> Quoted<'_> {
        Quoted { schema: self.events_schema_name(), prefix: "", table: &self.events }
    }

    pub(crate) fn aggregate_heads(&self) -> Quoted<'_> {
        Quoted { schema: self.events_schema_name(), prefix: "", table: &self.aggregate_heads }
    }

    /// The function that appends events.
    pub(crate) fn append(&self) -> Quoted<'_> {
        Quoted { schema: &self.schema, prefix: &self.prefix, table: "append" }
    }

    /// The function that records a command.
    pub(crate) fn command(&self) -> Quoted<'_> {
        Quoted { schema: &self.schema, prefix: &self.prefix, table: "command" }
    }

    /// The schema of the copies that the rebuild of this command fills.
    pub(crate) fn schema_of_copies(&self, command: i64) -> String {
        format!("{}rebuild_{command}", self.prefix)
    }

    /// The schema of the former tables that this command has replaced.
    pub(crate) fn schema_of_old(&self, command: i64) -> String {
        format!("{}old_{command}", self.prefix)
    }

    pub(crate) fn own(&self, table: Own) -> Quoted<'_> {
        Quoted { schema: &self.schema, prefix: &self.prefix, table: table.suffix() }
    }

    /// The quoted name of an index on one of the orchestrator's own tables. It has no schema: an
    /// index is in the schema of its table.
    pub(crate) fn index(&self, name: &str) -> String {
        let mut index = format!("{}{name}", self.prefix);
        index.truncate(
            index
                .char_indices()
                .map(|(at, c)| at + c.len_utf8())
                .take_while(|end| *end <= MAX_IDENTIFIER_BYTES)
                .last()
                .unwrap_or(0),
        );
        format!("\"{index}\"")
    }

    pub(crate) fn workers(&self) -> Quoted<'_> {
        self.own(Own::Workers)
    }

    pub(crate) fn checkpoints(&self) -> Quoted<'_> {
        self.own(Own::Checkpoints)
    }

    pub(crate) fn migrations(&self) -> Quoted<'_> {
        self.own(Own::Migrations)
    }
}

/// The orchestrator's own tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    ReplicaSets,
    Generations,
    Workers,
    Projections,
    Checkpoints,
    Commands,
    Parked,
    Discarded,
    Rebuilds,
    Migrations,
}

impl Own {
    pub(crate) const ALL: [Self; 10] = [
        Self::ReplicaSets,
        Self::Generations,
        Self::Workers,
        Self::Projections,
        Self::Checkpoints,
        Self::Commands,
        Self::Parked,
        Self::Discarded,
        Self::Rebuilds,
        Self::Migrations,
    ];

    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::ReplicaSets => "replica_sets",
            Self::Generations => "generations",
            Self::Workers => "workers",
            Self::Projections => "projections",
            Self::Checkpoints => "checkpoints",
            Self::Commands => "commands",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
            Self::Rebuilds => "rebuilds",
            Self::Migrations => "migrations",
        }
    }
}

/// A qualified name, quoted when printed. Validation has refused every name with a quote in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quoted<'a> {
    schema: &'a str,
    prefix: &'a str,
    table: &'a str,
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\".\"{}{}\"", self.schema, self.prefix, self.table)
    }
}

fn check_schema(field: &str, name: &str) -> Result<(), Error> {
    check(field, name)?;
    if name.starts_with("pg_") {
        return Err(Error::config(
            field,
            format!("{name:?}"),
            "PostgreSQL keeps names that begin with \"pg_\" for itself",
        ));
    }
    Ok(())
}

/// Refuses a name that cannot be that of a table or column.
pub(super) fn check(field: &str, name: &str) -> Result<(), Error> {
    let refuse = |problem: &str| Err(Error::config(field, format!("{name:?}"), problem));
    if name.is_empty() {
        return refuse("a name cannot be empty");
    }
    if name.len() > MAX_IDENTIFIER_BYTES {
        return refuse(&format!("it has {} bytes, PostgreSQL's names have {MAX_IDENTIFIER_BYTES} at most", name.len()));
    }
    if name.contains("$$") {
        return refuse("\"$$\" ends a quoted block of the schema's SQL");
    }
    match name.chars().find(|c| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '$'))) {
        Some(c) => refuse(&format!("{c:?} is not allowed: use letters, digits, '_', '-' and '$'")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::store::testing;

    #[test]
    fn names_are_quoted() {
        let names = Names::default().schema("Order").events_table("user").prefix("p-");
        assert_eq!(names.events().to_string(), r#""Order"."user""#);
        assert_eq!(names.own(Own::Workers).to_string(), r#""Order"."p-workers""#);
        names.validate().unwrap();
    }

    #[test]
    fn bad_names_are_refused_by_field_and_value() {
        let long = "x".repeat(64);
        for (names, field) in [
            (Names::default().schema(""), "schema"),
            (Names::default().schema("a\"b"), "schema"),
            (Names::default().events_schema("a.b"), "events_schema"),
            (Names::default().events_table("events; DROP TABLE x"), "events_table"),
            (Names::default().events_table(long.clone()), "events_table"),
            (Names::default().aggregate_heads_table("h\0"), "aggregate_heads_table"),
            (Names::default().prefix("p'"), "prefix"),
            (Names::default().schema("pg_mine"), "schema"),
            (Names::default().schema("a$$b"), "schema"),
            (Names::default().events_schema("pg_temp"), "events_schema"),
            (Names::default().events_table("orchestrator_workers"), "events_table"),
            (Names::default().aggregate_heads_table("events"), "aggregate_heads_table"),
            (Names::default().prefix("x".repeat(63)), "prefix"),
        ] {
            let error = names.validate().unwrap_err();
            assert!(matches!(&error, Error::InvalidConfig { field: f, .. } if f == field), "{error}");
        }
    }

    /// Some valid names, some invalid ones, some that collide with each other.
    fn names() -> impl Strategy<Value = [String; 5]> {
        let name = prop_oneof![
            4 => "[a-zA-Z0-9_$-]{1,12}",
            2 => "[a-c]",
            2 => "(pg_|orchestrator_)?(temp|workers|toast|Catalog|migrations)",
            2 => "\\PC{0,8}",
            1 => "[\\PC\\x00\"'.]{0,4}",
            1 => "[äß€語𝒜a]{10,40}",
            1 => "[a-z]{50,66}",
        ];
        prop::array::uniform5(name)
    }

    #[test]
    fn accepted_names_work_and_refusals_name_the_field() {
        let client = RefCell::new(testing::connect());
        let accepted = Cell::new(0);
        let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
        let outcome = TestRunner::new(config).run(&names(), |[schema, events_schema, events, heads, prefix]| {
            let names = Names::default().schema(schema).events_schema(events_schema);
            let names = names.events_table(events).aggregate_heads_table(heads).prefix(prefix);
            if let Err(error) = names.validate() {
                let is_named = matches!(&error, Error::InvalidConfig { field, .. } if FIELDS.contains(&field.as_str()));
                prop_assert!(is_named, "{}", error);
                return Ok(());
            }
            accepted.set(accepted.get() + 1);
            let mut client = client.borrow_mut();
            let mut tx = client.transaction().unwrap();
            let created = tx.batch_execute(&names.schema_sql());
            prop_assert!(created.is_ok(), "{:?} is refused: {:?}", names, created);
            let mut tables = vec![names.events(), names.aggregate_heads()];
            tables.extend(Own::ALL.map(|own| names.own(own)));
            for table in tables {
                let sql = "SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename = $2";
                let name = format!("{}{}", table.prefix, table.table);
                prop_assert!(name.len() <= MAX_IDENTIFIER_BYTES);
                prop_assert_eq!(tx.query_one(sql, &[&table.schema, &name]).unwrap().get::<_, i64>(0), 1, "{}", table);
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
        assert!(accepted.get() > 10, "only {} names were accepted", accepted.get());
    }

    const FIELDS: [&str; 5] = ["schema", "events_schema", "events_table", "aggregate_heads_table", "prefix"];
}
