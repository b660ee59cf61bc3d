//! Random tables, as statements.

use std::fmt::Write as _;

use fastrand::Rng;

use crate::store::read_model::table::{identifier, qualified};

/// What the tables of all seeds use.
pub(super) const WORLD: &str = r#"
    CREATE ROLE "Prop owner"; CREATE ROLE prop_reader; CREATE ROLE "prop ""writer"; CREATE ROLE prop_last;
    CREATE SCHEMA "Prop types"; GRANT USAGE ON SCHEMA "Prop types" TO PUBLIC;
    CREATE TYPE "Prop types"."Mood" AS ENUM ('so', 'it''s'); CREATE TYPE "Prop types".pair AS (a int, "B" text);
    CREATE DOMAIN "Prop types".amount AS numeric(12, 2) DEFAULT 1 CHECK (VALUE > 0);
    CREATE COLLATION "Prop types"."Coll 1" (provider = libc, locale = 'C');
    CREATE FUNCTION "Prop types"."make it"(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + 1';
    CREATE FUNCTION "Prop types".lower(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1';
    CREATE FUNCTION "Prop types".wrong(int, int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 > $2';
    CREATE OPERATOR "Prop types".>> (LEFTARG = int, RIGHTARG = int, FUNCTION = "Prop types".wrong)"#;

const ROLES: [&str; 4] = ["\"Prop owner\"", "prop_reader", "\"prop \"\"writer\"", "prop_last"];

/// A type, some defaults, and whether a B-tree index supports it.
const TYPES: [(&str, &[&str], bool); 32] = [
    ("int", &["7", "-1", "\"Prop types\".\"make it\"(1)", "(3 OPERATOR(\"Prop types\".>> ) 2)::int"], true),
    ("bigint", &["2::smallint", "length('it''s \\ \"x\"')"], true),
    ("smallint", &["1"], true),
    (
        "text",
        &[
            "'it''s \\ \"x\"'",
            "''",
            "\"Prop types\".lower('A')",
            "lower('A')",
            "CURRENT_USER",
            "'pg_class'::regclass::text",
        ],
        true,
    ),
    ("text COLLATE \"C\"", &["'x'"], true),
    ("text COLLATE \"Prop types\".\"Coll 1\"", &["'x' || 'y'"], true),
    ("varchar(20)", &["'a''b'"], true),
    ("varchar", &["NULL"], true),
    ("char(5)", &["'a'"], true),
    ("bpchar", &["'a'"], true),
    ("numeric(10,2)", &["1.5"], true),
    ("numeric", &["'NaN'"], true),
    ("timestamptz(3)", &["now()", "'2024-02-29 12:00:00+00'"], true),
    ("timestamp", &["LOCALTIMESTAMP(2)"], true),
    ("date", &["CURRENT_DATE"], true),
    ("interval day to second(3)", &["'1 day'"], true),
    ("uuid", &["gen_random_uuid()"], true),
    ("jsonb", &["'{\"a\": [1, 2]}'", "jsonb_build_object('k', 1)"], true),
    ("json", &["'{}'"], false),
    ("xml", &["'<a/>'"], false),
    ("bytea", &["'\\x00ff'"], true),
    ("boolean", &["true", "1 > 2"], true),
    ("int[]", &["'{1,2}'", "ARRAY[1]"], true),
    ("text[][]", &["ARRAY['a''b']"], true),
    ("point", &["'(1,2)'"], false),
    ("inet", &["'127.0.0.1'"], true),
    ("tsvector", &["to_tsvector('simple', 'a')"], true),
    ("int4range", &["'[1,3)'"], true),
    ("bit(3)", &["B'101'"], true),
    ("\"char\"", &["'x'"], true),
    ("\"Prop types\".\"Mood\"", &["'it''s'"], true),
    ("\"Prop types\".amount", &["2"], true),
];

/// Tables of one seed.
pub(super) struct Generated {
    pub(super) tables: Vec<String>,
    pub(super) sql: String,
}

struct Column {
    name: String,
    ty: &'static str,
    is_ordered: bool,
    is_not_null: bool,
    content: Content,
}

/// Where a column's values come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Given,
    Sequence,
    Stored,
    Virtual,
}

impl Column {
    fn is_plain(&self) -> bool {
        self.content == Content::Given
    }
}

struct Generator {
    rng: Rng,
    schema: String,
    version: i32,
    is_unlogged: bool,
    names: usize,
    sql: String,
    /// Statements that need the table.
    later: Vec<String>,
    /// Each table with the columns of its primary key, their types, and the key's name.
    keys: Vec<(String, Vec<(String, &'static str)>)>,
}

/// Tables in a schema that does not exist yet.
pub(super) fn generate(seed: u64, schema: &str, version: i32) -> Generated {
    let mut rng = Rng::with_seed(seed);
    let is_unlogged = rng.u8(0..5) == 0;
    let sql = format!("CREATE SCHEMA {schema}; GRANT ALL ON SCHEMA {schema} TO PUBLIC;\n");
    let mut generator = Generator {
        rng,
        schema: schema.to_owned(),
        version,
        is_unlogged,
        names: 0,
        sql,
        later: Vec::new(),
        keys: Vec::new(),
    };
    let tables = (0..generator.rng.usize(1..4)).map(|_| generator.table()).collect();
    Generated { tables, sql: generator.sql }
}

impl Generator {
    fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }

    fn any<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.rng.usize(0..of.len())]
    }

    fn line(&mut self, sql: &str) {
        _ = writeln!(self.sql, "{sql};");
    }

    /// A name that is not used yet.
    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        let n = self.names;
        let mut name = match self.rng.u8(0..9) {
            0 => format!("{kind} with Capitals {n}"),
            1 => format!("quo\"te{kind}'s{n}"),
            2 => format!("{kind}.{n}"),
            3 => format!("{kind}_ünïcödé_語_{n}"),
            4 => format!("back\\slash {kind}{n}"),
            5 => format!("{kind}${n}"),
            6 => format!("{n}::regclass{kind}"),
            _ => format!("{kind}{n}"),
        };
        if self.one_in(4) {
            while name.len() < 63 {
                name.push('x');
            }
        }
        name
    }

    fn text(&mut self) -> String {
        let text = *self.any(&["it''s", "a \\ b", "zwei\nZeilen", "''public.t''::regclass", "語 \"x\" $$ ;"]);
        format!("'{text}'")
    }

    fn comment(&mut self, on: &str) {
        if self.one_in(4) {
            let text = self.text();
            self.line(&format!("COMMENT ON {on} IS {text}"));
        }
    }

    fn table(&mut self) -> String {
        let name = self.name("t");
        let table = qualified(&self.schema, &name);
        let mut columns = Vec::new();
        let mut definitions = Vec::new();
        for _ in 0..self.rng.usize(0..8) {
            let (column, definition) = self.column();
            columns.push(column);
            definitions.push(definition);
        }
        let dropped = self.one_in(3).then(|| self.rng.usize(0..=definitions.len()));
        if let Some(at) = dropped {
            definitions.insert(at, "dropped int DEFAULT 1 UNIQUE".to_owned());
        }
        let options = self.options();
        let unlogged = if self.is_unlogged { "UNLOGGED " } else { "" };
        let space = if self.one_in(5) { " TABLESPACE \"Prop space\"" } else { "" };
        self.line(&format!("CREATE {unlogged}TABLE {table} ({}){options}{space}", definitions.join(", ")));
        if dropped.is_some() {
            self.line(&format!("ALTER TABLE {table} DROP COLUMN dropped"));
        }
        for statement in std::mem::take(&mut self.later) {
            self.line(&statement);
        }
        for column in &columns {
            self.describe(&table, column);
        }
        self.sequences(&table, &columns);
        self.constraints(&table, &columns);
        self.indexes(&table, &columns);
        self.comment(&format!("TABLE {table}"));
        self.owner_and_grants(&table, &columns);
        name
    }

    fn column(&mut self) -> (Column, String) {
        let name = self.name("c");
        let quoted = identifier(&name);
        let not_null = self.one_in(3);
        let constraint =
            if self.one_in(2) { format!("CONSTRAINT {} ", identifier(&self.name("nn"))) } else { String::new() };
        let (ty, definition, is_not_null, content) = match self.rng.u8(0..10) {
            0 => {
                let ty = *self.any(&["smallint", "int", "bigint"]);
                let kind = *self.any(&["ALWAYS", "BY DEFAULT"]);
                let sequence = self.name("seq");
                let options = *self.any(&["", "START 10", "INCREMENT -2", "MINVALUE -5 MAXVALUE 99 CACHE 3 CYCLE"]);
                let sequence = qualified(&self.schema, &sequence);
                if ty == "int" && options.is_empty() && self.one_in(2) {
                    let other = *self.any(&["bigint", "smallint"]);
                    self.later.push(format!("ALTER SEQUENCE {sequence} AS {other}"));
                }
                if self.version >= 15 && self.one_in(3) {
                    let persistence = if self.is_unlogged { "LOGGED" } else { "UNLOGGED" };
                    self.later.push(format!("ALTER SEQUENCE {sequence} SET {persistence}"));
                }
                (
                    ty,
                    format!("{ty} GENERATED {kind} AS IDENTITY (SEQUENCE NAME {sequence} {options})"),
                    true,
                    Content::Sequence,
                )
            }
            1 => {
                let ty = *self.any(&["smallserial", "serial", "bigserial"]);
                (ty, ty.to_owned(), true, Content::Sequence)
            }
            2 => {
                let (stored, content) = if self.version >= 18 && self.one_in(2) {
                    ("VIRTUAL", Content::Virtual)
                } else {
                    ("STORED", Content::Stored)
                };
                let (ty, expression) = *self.any(&[("int", "1 + 2"), ("text", "md5('X')"), ("bigint", "abs(-3)")]);
                // A nested call, because a generated column cannot be referred to.
                (ty, format!("{ty} GENERATED ALWAYS AS ({expression}) {stored}"), false, content)
            }
            _ => {
                let (ty, defaults, _) = *self.any(&TYPES);
                let default = if self.one_in(2) { format!(" DEFAULT {}", self.any(defaults)) } else { String::new() };
                (ty, format!("{ty}{default}"), false, Content::Given)
            }
        };
        let end = if not_null { format!(" {constraint}NOT NULL") } else { String::new() };
        let is_ordered = TYPES.iter().find(|(other, ..)| *other == ty).is_none_or(|(_, _, is_ordered)| *is_ordered)
            && content != Content::Virtual;
        let definition = format!("{quoted} {definition}{end}");
        (Column { name: quoted, ty, is_ordered, is_not_null: is_not_null || not_null, content }, definition)
    }

    fn options(&mut self) -> String {
        let all = [
            "fillfactor = 70",
            "autovacuum_enabled = false",
            "autovacuum_enabled = true",
            "parallel_workers = 2",
            "toast_tuple_target = 200",
            "autovacuum_vacuum_scale_factor = 0.5",
            "toast.autovacuum_enabled = off",
            "toast.autovacuum_vacuum_threshold = 9",
        ];
        let mut chosen: Vec<&str> = Vec::new();
        for _ in 0..self.rng.usize(0..4) {
            let option = *self.any(&all);
            let name = option.split(' ').next();
            if chosen.iter().all(|other| other.split(' ').next() != name) {
                chosen.push(option);
            }
        }
        if chosen.is_empty() { String::new() } else { format!(" WITH ({})", chosen.join(", ")) }
    }

    fn describe(&mut self, table: &str, column: &Column) {
        let alter = format!("ALTER TABLE {table} ALTER COLUMN {}", column.name);
        let is_text = column.ty.starts_with("text") || ["varchar", "jsonb", "bytea", "numeric"].contains(&column.ty);
        if is_text && self.one_in(3) {
            let storage = *self.any(&["EXTERNAL", "MAIN", "PLAIN", "EXTENDED"]);
            self.line(&format!("{alter} SET STORAGE {storage}"));
        }
        if is_text && self.one_in(4) {
            self.line(&format!("{alter} SET COMPRESSION pglz"));
        }
        if column.content != Content::Virtual && self.one_in(4) {
            let target = self.rng.u32(0..500);
            self.line(&format!("{alter} SET STATISTICS {target}"));
        }
        if self.one_in(5) {
            self.line(&format!("{alter} SET (n_distinct = -0.5, n_distinct_inherited = 7)"));
        }
        if column.is_plain() && column.ty == "text" && self.one_in(4) {
            // An expression may refer to its own table.
            let literal = table.replace('\'', "''");
            self.line(&format!("{alter} SET DEFAULT '{literal}'::regclass::text"));
        }
        self.comment(&format!("COLUMN {table}.{}", column.name));
    }

    /// Sequences that columns own beside those of `serial`.
    fn sequences(&mut self, table: &str, columns: &[Column]) {
        for column in columns.iter().filter(|column| column.is_plain() && column.ty == "bigint") {
            let name = self.name("own");
            let sequence = qualified(&self.schema, &name);
            let unlogged = if self.version >= 15 && self.one_in(3) { "UNLOGGED " } else { "" };
            let options = *self.any(&["", "AS int MAXVALUE 1000", "START 5 CYCLE", "INCREMENT -1 CACHE 4"]);
            self.line(&format!("CREATE {unlogged}SEQUENCE {sequence} {options}"));
            self.line(&format!("ALTER SEQUENCE {sequence} OWNED BY {table}.{}", column.name));
            let literal = sequence.replace('\'', "''");
            if self.one_in(2) {
                self.line(&format!("ALTER TABLE {table} ALTER {} SET DEFAULT nextval('{literal}') * 2", column.name));
            }
            self.comment(&format!("SEQUENCE {sequence}"));
        }
    }

    /// Some of the columns that can be part of a key.
    fn some(&mut self, columns: &[Column], is_allowed: impl Fn(&Column) -> bool) -> Vec<(String, &'static str)> {
        let mut allowed: Vec<_> =
            columns.iter().filter(|column| is_allowed(column)).map(|c| (c.name.clone(), c.ty)).collect();
        self.rng.shuffle(&mut allowed);
        allowed.truncate(self.rng.usize(1..3));
        allowed
    }

    fn constraints(&mut self, table: &str, columns: &[Column]) {
        let list =
            |columns: &[(String, &str)]| columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let is_ordered = |column: &Column| column.is_ordered;
        if self.one_in(2) {
            let key = self.some(columns, |column| column.is_ordered && column.is_not_null);
            if !key.is_empty() {
                let end = *self.any(&[
                    "",
                    " WITH (fillfactor = 60)",
                    " DEFERRABLE",
                    " DEFERRABLE INITIALLY DEFERRED",
                    " USING INDEX TABLESPACE \"Prop space\"",
                ]);
                let name = self.constraint(table, &format!("PRIMARY KEY ({}){end}", list(&key)));
                if !end.contains("DEFER") {
                    self.keys.push((table.to_owned(), key.clone()));
                    if self.one_in(3) {
                        self.line(&format!("ALTER TABLE {table} REPLICA IDENTITY USING INDEX {name}"));
                    }
                }
                let index = format!("{}.{name}", identifier(&self.schema));
                self.comment(&format!("INDEX {index}"));
                if self.one_in(3) {
                    self.line(&format!("ALTER TABLE {table} CLUSTER ON {name}"));
                }
            }
        } else if self.one_in(3) {
            let identity = *self.any(&["FULL", "NOTHING"]);
            self.line(&format!("ALTER TABLE {table} REPLICA IDENTITY {identity}"));
        }
        if self.one_in(2) {
            let key = self.some(columns, is_ordered);
            let others = self.some(columns, Column::is_plain);
            if !key.is_empty() {
                let nulls = if self.version >= 15 && self.one_in(2) { " NULLS NOT DISTINCT" } else { "" };
                let include = if self.one_in(2) && !others.is_empty() {
                    format!(" INCLUDE ({})", list(&others))
                } else {
                    String::new()
                };
                let end = *self.any(&["", " WITH (fillfactor = 80)", " DEFERRABLE", " INITIALLY DEFERRED"]);
                self.constraint(table, &format!("UNIQUE{nulls} ({}){include}{end}", list(&key)));
            }
        }
        for column in columns.iter().filter(|column| column.is_plain()) {
            if self.one_in(4) {
                let end = *self.any(&["", " NO INHERIT", " NOT VALID", " NO INHERIT NOT VALID"]);
                let end = if self.version >= 18 && self.one_in(6) { " NOT ENFORCED" } else { end };
                let check = *self.any(&["IS NOT NULL", "IS DISTINCT FROM NULL"]);
                let more = *self.any(&["", " AND \"Prop types\".\"make it\"(2) = 3", " OR 'it''s \\' <> ''"]);
                self.constraint(table, &format!("CHECK ({} {check}{more}){end}", column.name));
            }
            if column.ty == "int4range" {
                let end = *self.any(&["", " WITH (fillfactor = 50)", " WHERE (true)", " DEFERRABLE"]);
                self.constraint(table, &format!("EXCLUDE USING gist ({} WITH &&){end}", column.name));
            }
            if self.version >= 18 && !column.is_not_null && self.one_in(4) {
                let end = *self.any(&["", " NO INHERIT", " NOT VALID"]);
                self.constraint(table, &format!("NOT NULL {}{end}", column.name));
            }
        }
        for (other, key) in self.keys.clone() {
            let own: Vec<String> = key
                .iter()
                .filter_map(|(_, ty)| columns.iter().find(|column| column.ty == *ty && column.is_plain()))
                .map(|column| column.name.clone())
                .collect();
            let mut distinct = own.clone();
            distinct.dedup();
            if own.len() == key.len() && distinct == own && self.one_in(2) {
                let matching = *self.any(&["", " MATCH FULL"]);
                let deleting = *self.any(&[
                    "",
                    " ON DELETE CASCADE",
                    " ON DELETE SET NULL",
                    " ON UPDATE SET DEFAULT",
                    " ON DELETE RESTRICT ON UPDATE CASCADE",
                ]);
                let end = *self.any(&["", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED", " NOT VALID"]);
                let end = if self.version >= 18 && self.one_in(4) { " NOT ENFORCED" } else { end };
                self.constraint(
                    table,
                    &format!(
                        "FOREIGN KEY ({}) REFERENCES {other} ({}){matching}{deleting}{end}",
                        own.join(", "),
                        list(&key)
                    ),
                );
            }
        }
    }

    fn constraint(&mut self, table: &str, definition: &str) -> String {
        let name = identifier(&self.name("con"));
        self.line(&format!("ALTER TABLE {table} ADD CONSTRAINT {name} {definition}"));
        self.comment(&format!("CONSTRAINT {name} ON {table}"));
        name
    }

    fn indexes(&mut self, table: &str, columns: &[Column]) {
        for column in columns {
            if !self.one_in(3) || !column.is_ordered && column.ty != "point" {
                continue;
            }
            let c = &column.name;
            let bare = self.name("ix");
            let name = identifier(&bare);
            let space = if self.one_in(6) { " TABLESPACE \"Prop space\"" } else { "" };
            let mut has_expression = false;
            let (kind, rest) = match (column.ty, self.rng.u8(0..6)) {
                ("point", _) => ("", format!("USING gist ({c})")),
                ("jsonb", 0..=3) => ("", format!("USING gin ({c} jsonb_path_ops) WITH (fastupdate = off)")),
                ("int[]" | "tsvector", _) => ("", format!("USING gin ({c})")),
                ("text", 0..=2) => {
                    has_expression = true;
                    (
                        "",
                        format!(
                            "({c} text_pattern_ops, lower({c}), \"Prop types\".lower({c}) COLLATE \"Prop types\".\"Coll 1\" DESC)"
                        ),
                    )
                }
                ("int", 0) => (
                    "",
                    format!(
                        "USING brin ({c} int4_minmax_multi_ops (values_per_range = 16)) WITH (pages_per_range = 4)"
                    ),
                ),
                ("int", 1) => ("", format!("({c}) WHERE {c} OPERATOR(\"Prop types\".>>) 3 OR 'it''s' <> '\\'")),
                ("date" | "uuid" | "bigint" | "inet", 2) => ("", format!("USING brin ({c})")),
                (_, 3) if self.version >= 15 => ("UNIQUE ", format!("({c}) NULLS NOT DISTINCT WITH (fillfactor = 77)")),
                (_, 4) => ("UNIQUE ", format!("({c} DESC NULLS LAST) WHERE {c} IS NOT NULL")),
                _ => ("", format!("({c} NULLS FIRST)")),
            };
            let (rest, predicate) = rest
                .split_once(" WHERE ")
                .map_or((rest.clone(), String::new()), |(a, b)| (a.to_owned(), format!(" WHERE {b}")));
            self.line(&format!("CREATE {kind}INDEX {name} ON {table} {rest}{space}{predicate}"));
            if has_expression && self.one_in(2) {
                let index = qualified(&self.schema, &bare);
                self.line(&format!("ALTER INDEX {index} ALTER COLUMN 2 SET STATISTICS 33"));
            }
            self.comment(&format!("INDEX {}", qualified(&self.schema, &bare)));
        }
    }

    fn owner_and_grants(&mut self, table: &str, columns: &[Column]) {
        if self.one_in(2) {
            self.line(&format!("ALTER TABLE {table} OWNER TO \"Prop owner\""));
        }
        let grant = |this: &mut Self, what: &str, on: &str| {
            let role = *this.any(&[ROLES[1], ROLES[2], ROLES[3], "PUBLIC"]);
            let option = if role != "PUBLIC" && this.one_in(3) { " WITH GRANT OPTION" } else { "" };
            this.line(&format!("GRANT {what} ON {on} TO {role}{option}"));
        };
        for _ in 0..self.rng.usize(0..3) {
            let what = *self.any(&["SELECT", "INSERT, UPDATE", "ALL", "DELETE, TRUNCATE, REFERENCES"]);
            grant(self, what, table);
        }
        for column in columns {
            if self.one_in(6) {
                let what = format!("{} ({})", *self.any(&["SELECT", "UPDATE", "ALL"]), column.name);
                grant(self, &what, table);
            }
        }
        if self.one_in(4) {
            self.line(&format!("REVOKE {} ON {table} FROM {}", "UPDATE, DELETE", "CURRENT_USER, \"Prop owner\""));
        }
        if self.one_in(4) {
            // A chain of grantors.
            self.line(&format!("GRANT SELECT ON {table} TO {} WITH GRANT OPTION", ROLES[1]));
            self.line(&format!(
                "SET ROLE {}; GRANT SELECT ON {table} TO {} WITH GRANT OPTION; SET ROLE {}; GRANT SELECT ON {table} TO {}; RESET ROLE",
                ROLES[1], ROLES[3], ROLES[3], ROLES[2]
            ));
        }
        if self.one_in(3) {
            let sequences = format!(
                "DO $do$ DECLARE s regclass; BEGIN FOR s IN SELECT objid FROM pg_depend WHERE refobjid = '{}'::regclass AND refobjsubid > 0
                     AND classid = 'pg_class'::regclass AND objid IN (SELECT seqrelid FROM pg_sequence) LOOP
                     EXECUTE format('GRANT USAGE ON SEQUENCE %s TO prop_reader WITH GRANT OPTION; COMMENT ON SEQUENCE %1$s IS ''mine''', s);
                 END LOOP; END $do$",
                table.replace('\'', "''")
            );
            self.line(&sequences);
        }
    }
}
