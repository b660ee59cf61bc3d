use std::fmt::Write as _;

use postgres::{Client, GenericClient, NoTls};

use super::snapshot::version;
use super::{tables, value};
use crate::store::read_model::{Hinders, Kind, Obstacle, Table, obstacles};
use crate::store::testing;

use Hinders::{Both, Copy as ForCopy, Swap};

/// A table that has everything that can be carried over, and another one beside it.
const SETUP: &str = "
    CREATE SCHEMA app; CREATE SCHEMA other; CREATE TYPE other.shape AS (id int, note text);
    CREATE TABLE app.t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text, serial bigserial UNIQUE, parent int REFERENCES app.t,
                        twice int GENERATED ALWAYS AS (parent * 2) STORED, CHECK (note <> ''));
    CREATE INDEX t_note ON app.t (lower(note)); COMMENT ON TABLE app.t IS 'mine';
    CREATE TABLE app.u (t int REFERENCES app.t, id int PRIMARY KEY);
    CREATE TABLE other.o (id int PRIMARY KEY, note text);
    CREATE FUNCTION other.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'";

/// What stands in the way of a rebuild of `app.t` and `app.u`.
fn found(client: &mut impl GenericClient, tables: &[Table]) -> Vec<Obstacle> {
    obstacles(client, tables, &[]).unwrap_or_else(|error| panic!("{}", crate::error::describe(&error)))
}

fn brief(found: &[Obstacle]) -> Vec<(Kind, &str, &str, Hinders)> {
    found.iter().map(|obstacle| (obstacle.kind, &*obstacle.table, &*obstacle.object, obstacle.hinders)).collect()
}

type Expected = &'static [(Kind, &'static str, Hinders)];

/// What can stand in the way of a rebuild of `app.t`, and how it is named.
const CASES: &[(&str, Expected)] = &[
    ("SELECT", &[]),
    ("CREATE VIEW other.v AS SELECT id FROM app.t", &[(Kind::Dependent, "view other.v", Swap)]),
    ("CREATE VIEW other.v AS SELECT last_value FROM app.t_serial_seq", &[(Kind::Dependent, "view other.v", Swap)]),
    // By the primary key alone.
    ("CREATE VIEW other.\"V.1\" AS SELECT note FROM app.t GROUP BY id", &[(Kind::Dependent, "view other.\"V.1\"", Swap)]),
    ("CREATE MATERIALIZED VIEW other.m AS SELECT count(*) FROM app.t", &[(Kind::Dependent, "materialized view other.m", Swap)]),
    ("CREATE FUNCTION other.s() RETURNS SETOF app.t LANGUAGE sql AS 'SELECT * FROM app.t'", &[(Kind::Dependent, "function other.s()", Swap)]),
    ("CREATE FUNCTION other.a(app.t[]) RETURNS int LANGUAGE sql AS 'SELECT 1'", &[(Kind::Dependent, "function other.a(app.t[])", Swap)]),
    (
        "CREATE PROCEDURE other.p() BEGIN ATOMIC DELETE FROM app.t; END",
        &[(Kind::Dependent, "procedure other.p()", Swap)],
    ),
    ("ALTER TABLE other.o ADD whole app.t", &[(Kind::Dependent, "table column other.o.whole", Swap)]),
    ("CREATE DOMAIN other.d AS app.t", &[(Kind::Dependent, "type other.d", Swap)]),
    (
        "ALTER TABLE other.o ALTER id SET DEFAULT nextval('app.t_serial_seq')",
        &[(Kind::Dependent, "default value for other.o.id", Swap)],
    ),
    (
        "ALTER TABLE other.o ADD CONSTRAINT k FOREIGN KEY (id) REFERENCES app.t",
        &[(Kind::Referring, "table constraint k on other.o", Swap)],
    ),
    (
        "ALTER TABLE app.t ADD CONSTRAINT k FOREIGN KEY (parent) REFERENCES other.o",
        &[(Kind::Referred, "foreign key k", Swap)],
    ),
    (
        "ALTER TABLE app.t DISABLE TRIGGER ALL",
        &[(Kind::DisabledCheck, "constraint t_parent_fkey", Swap), (Kind::DisabledCheck, "constraint u_t_fkey", Swap)],
    ),
    (
        "CREATE TRIGGER g BEFORE INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION other.f()",
        &[(Kind::Trigger, "trigger g on app.t", Swap)],
    ),
    (
        "CREATE CONSTRAINT TRIGGER g AFTER INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION other.f()",
        &[(Kind::Trigger, "trigger g on app.t", Swap)],
    ),
    ("CREATE POLICY p ON app.t", &[(Kind::Policy, "policy p on app.t", Swap)]),
    ("CREATE POLICY p ON other.o USING (EXISTS (SELECT FROM app.t))", &[(Kind::Dependent, "policy p on other.o", Swap)]),
    ("ALTER TABLE app.t ENABLE ROW LEVEL SECURITY", &[(Kind::RowSecurity, "row-level security", Swap)]),
    ("ALTER TABLE app.t FORCE ROW LEVEL SECURITY", &[(Kind::RowSecurity, "row-level security", Swap)]),
    ("CREATE RULE r AS ON DELETE TO app.t DO INSTEAD NOTHING", &[(Kind::Rule, "rule r on app.t", Both)]),
    ("CREATE RULE r AS ON DELETE TO other.o DO ALSO DELETE FROM app.t", &[(Kind::Dependent, "rule r on other.o", Swap)]),
    ("CREATE PUBLICATION \"P\" FOR TABLE app.t", &[(Kind::Publication, "publication \"P\"", Swap)]),
    ("CREATE TABLE other.c () INHERITS (app.t)", &[(Kind::Child, "table other.c", Both), (Kind::Dependent, "default value for other.c.serial", Swap)]),
    (
        "CREATE STATISTICS other.s ON id, note FROM app.t",
        &[(Kind::Statistics, "statistics object other.s", Swap)],
    ),
    ("COMMENT ON TYPE app.t IS 'row'", &[(Kind::OfType, "a comment", Swap)]),
    ("GRANT USAGE ON TYPE app.t TO PUBLIC", &[(Kind::OfType, "a privilege", Swap)]),
    ("ALTER TABLE app.u ADD whole app.t", &[(Kind::RowType, "table column app.u.whole", Both)]),
    ("CREATE TABLE app._t ()", &[(Kind::ArrayName, "type app._t", Swap)]),
    ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'app.t_note'::regclass", &[(Kind::InvalidIndex, "index app.t_note", Swap)]),
    ("ALTER EXTENSION plpgsql ADD TABLE app.t", &[(Kind::Extension, "extension plpgsql", Swap)]),
    ("ALTER INDEX app.t_note DEPENDS ON EXTENSION plpgsql", &[(Kind::Extension, "extension plpgsql", Swap)]),
    (
        "INSERT INTO pg_seclabel VALUES ('app.t'::regclass, 'pg_class'::regclass, 2, 'guard', 'secret')",
        &[(Kind::Label, "security label of provider guard on table column app.t.note", Swap)],
    ),
    ("CREATE PUBLICATION \"P\" FOR ALL TABLES", &[(Kind::PublicationOfAll, "publication \"P\"", Both), (Kind::PublicationOfAll, "publication \"P\"", Both)]),
    // Those are not published.
    ("CREATE PUBLICATION p FOR ALL TABLES; ALTER TABLE app.u SET UNLOGGED; ALTER TABLE app.t SET UNLOGGED", &[]),
    (
        "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p WITH (connect = false, slot_name = NONE);
         INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate) SELECT oid, 'app.t'::regclass, 'r' FROM pg_subscription",
        &[(Kind::Subscription, "subscription s", Both)],
    ),
    ("CREATE TABLE other.p (); ALTER TABLE app.t INHERIT other.p", &[(Kind::Parent, "table other.p", Swap)]),
    (
        "ALTER TABLE app.t ALTER id DROP IDENTITY; CREATE TABLE other.p (LIKE app.t INCLUDING GENERATED) PARTITION BY LIST (id); ALTER TABLE other.p ATTACH PARTITION app.t DEFAULT",
        &[(Kind::Parent, "table other.p", Swap)],
    ),
    (
        "DROP TABLE app.t CASCADE; CREATE TABLE app.t OF other.shape",
        &[(Kind::Typed, "type other.shape", Swap)],
    ),
    // Its rows are updated, and so are those of a key that can be kept.
    ("ALTER TABLE app.u DROP CONSTRAINT u_t_fkey, ADD FOREIGN KEY (t) REFERENCES app.t ON DELETE CASCADE ON UPDATE CASCADE", &[]),
    (
        "ALTER TABLE app.t ALTER parent SET NOT NULL, ALTER parent ADD GENERATED ALWAYS AS IDENTITY;
         ALTER TABLE app.u DROP CONSTRAINT u_t_fkey, ADD CONSTRAINT k FOREIGN KEY (t) REFERENCES app.t ON DELETE CASCADE",
        &[(Kind::Unreplaceable, "foreign key k of table app.u", ForCopy)],
    ),
    (
        "ALTER TABLE app.u DROP CONSTRAINT u_t_fkey; ALTER TABLE app.t DROP CONSTRAINT t_pkey CASCADE;
         ALTER TABLE app.u ADD CONSTRAINT k FOREIGN KEY (t) REFERENCES app.t (serial) ON DELETE RESTRICT",
        &[(Kind::Unreplaceable, "foreign key k of table app.u", ForCopy)],
    ),
    (
        "ALTER TABLE app.u ADD CONSTRAINT k FOREIGN KEY (t) REFERENCES app.t (serial) ON DELETE CASCADE ON UPDATE CASCADE",
        &[(Kind::Unreplaceable, "foreign key k of table app.u", ForCopy)],
    ),
];

#[test]
fn each_thing_that_cannot_be_carried_over_is_named() {
    let mut client = testing::connect();
    client.batch_execute(SETUP).unwrap();
    let mut tx = client.transaction().unwrap();
    let mut wrong = String::new();
    for (sql, expected) in CASES {
        let mut tx = tx.transaction().unwrap();
        tx.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {}", crate::error::describe(&error)));
        let tables = tables(&mut tx, &["t", "u"]);
        let found = found(&mut tx, &tables);
        let found: Vec<_> = found.iter().map(|o| (o.kind, &*o.object, o.hinders)).collect();
        if found != *expected {
            _ = writeln!(wrong, "{sql}\n  found    {found:?}\n  expected {expected:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_published_schema_is_named() {
    let mut client = testing::connect();
    client.batch_execute(SETUP).unwrap();
    if version(&mut client) < 15 {
        return;
    }
    client.batch_execute("CREATE PUBLICATION p FOR TABLES IN SCHEMA app").unwrap();
    let tables = tables(&mut client, &["t"]);
    let found = found(&mut client, &tables);
    let expected = (Kind::PublicationOfSchema, "app.t", "publication p", Swap);
    assert!(brief(&found).contains(&expected), "{found:?}");
}

#[test]
fn every_obstacle_is_listed_with_its_table() {
    let mut client = testing::connect();
    client.batch_execute(SETUP).unwrap();
    client
        .batch_execute(
            "CREATE VIEW other.v AS SELECT FROM app.t, app.u; CREATE VIEW app.w AS SELECT FROM app.u;
             CREATE POLICY p ON app.t; CREATE TABLE app.\"C\" () INHERITS (app.u)",
        )
        .unwrap();
    let own = tables(&mut client, &["t", "u", "C"]);
    let obstacles = obstacles(&mut client, &own, &[("totals", &own[1]), ("others", &own[1])]).unwrap();
    assert_eq!(
        brief(&obstacles),
        [
            (Kind::Parent, "app.\"C\"", "table app.u", Swap),
            (Kind::Dependent, "app.t", "view other.v", Swap),
            (Kind::Policy, "app.t", "policy p on app.t", Swap),
            (Kind::Child, "app.u", "table app.\"C\"", Both),
            (Kind::Claimed, "app.u", "projection others", Both),
            (Kind::Claimed, "app.u", "projection totals", Both),
            (Kind::Dependent, "app.u", "view app.w", Swap),
            (Kind::Dependent, "app.u", "view other.v", Swap),
        ]
    );
    client
        .batch_execute("DROP TABLE app.u CASCADE; ALTER TABLE app.t RENAME TO x; DROP VIEW IF EXISTS other.v")
        .unwrap();
    let gone = obstacles_of(&mut client, &own[..2]);
    let of = |table: &str| (Kind::Gone, table.to_owned());
    assert!(gone.contains(&of("app.t")) && gone.contains(&of("app.u")), "{gone:?}");
}

fn obstacles_of(client: &mut Client, tables: &[Table]) -> Vec<(Kind, String)> {
    found(client, tables).into_iter().map(|obstacle| (obstacle.kind, obstacle.table)).collect()
}

#[test]
fn missing_privileges_are_named() {
    let url = testing::database();
    let mut admin = Client::connect(&url, NoTls).unwrap();
    let database: String = value(&mut admin, "SELECT current_database()::text");
    // Roles belong to the whole server.
    admin
        .batch_execute(&format!(
            "{SETUP}; CREATE ROLE mover LOGIN; CREATE ROLE holder; CREATE ROLE middle; CREATE ROLE reader;
             ALTER TABLE app.t OWNER TO holder; ALTER TABLE app.u OWNER TO mover; GRANT CREATE ON DATABASE {database} TO mover;
             GRANT USAGE, CREATE ON SCHEMA app TO mover; GRANT SELECT, INSERT, UPDATE, DELETE ON app.t TO mover;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA app TO mover"
        ))
        .unwrap();
    let version = version(&mut admin);
    let tables = tables(&mut admin, &["t", "u"]);
    let mut client = Client::connect(&url.replace("postgres@", "mover@"), NoTls).unwrap();
    let mut check = |change: &str, expected: &[(Kind, &str, Hinders)]| {
        // Some statements cannot run in a transaction with others.
        for statement in change.split(';') {
            admin
                .batch_execute(statement)
                .unwrap_or_else(|error| panic!("{statement}: {}", crate::error::describe(&error)));
        }
        let found = found(&mut client, &tables);
        let found: Vec<_> = found.iter().map(|o| (o.kind, &*o.object, o.hinders)).collect();
        assert_eq!(found, expected, "{change}");
    };
    check("SELECT", &[(Kind::Ownership, "role holder", Both)]);
    check("GRANT holder TO mover", &[]);
    check(
        "ALTER ROLE mover NOINHERIT; REVOKE holder FROM mover; GRANT holder TO mover",
        &[(Kind::Ownership, "role holder", Both)],
    );
    check("ALTER ROLE mover INHERIT; REVOKE holder FROM mover; GRANT holder TO mover", &[]);
    if version >= 16 {
        check(
            "REVOKE holder FROM mover; GRANT holder TO mover WITH SET FALSE",
            &[(Kind::Ownership, "role holder", Both)],
        );
        check("REVOKE holder FROM mover; GRANT holder TO mover", &[]);
    }
    let in_database = format!("database {database}");
    check(&format!("REVOKE CREATE ON DATABASE {database} FROM mover"), &[(Kind::CreateSchema, &in_database, Both)]);
    check(
        &format!("GRANT CREATE ON DATABASE {database} TO mover; REVOKE CREATE ON SCHEMA app FROM mover"),
        &[(Kind::CreateTable, "schema app", Swap), (Kind::CreateTable, "schema app", Swap)],
    );
    check(
        "GRANT CREATE ON SCHEMA app TO mover; GRANT SELECT ON app.t TO middle WITH GRANT OPTION; GRANT USAGE ON SCHEMA app TO middle;
         SET ROLE middle; GRANT SELECT ON app.t TO reader; RESET ROLE",
        &[(Kind::Grantor, "role middle", Both)],
    );
    check("REVOKE SELECT ON app.t FROM middle CASCADE", &[]);
    check("ALTER TABLE app.t ENABLE ROW LEVEL SECURITY", &[(Kind::RowSecurity, "row-level security", Swap)]);
    check(
        "ALTER TABLE app.t FORCE ROW LEVEL SECURITY",
        &[(Kind::HiddenRows, "row-level security", ForCopy), (Kind::RowSecurity, "row-level security", Swap)],
    );
    check(
        "ALTER TABLE app.t DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY; REVOKE UPDATE, DELETE ON app.u FROM mover",
        &[(Kind::Write, "DELETE on table app.u", ForCopy), (Kind::Write, "UPDATE on table app.u", ForCopy)],
    );
    check(
        "GRANT ALL ON app.u TO mover; REVOKE ALL ON SEQUENCE app.t_serial_seq FROM mover, holder",
        &[
            (Kind::Write, "SELECT on sequence app.t_serial_seq", ForCopy),
            (Kind::Write, "UPDATE on sequence app.t_serial_seq", ForCopy),
        ],
    );
    check(
        "GRANT ALL ON SEQUENCE app.t_serial_seq TO mover; REVOKE ALL ON SCHEMA app FROM mover",
        &[
            (Kind::CreateTable, "schema app", Swap),
            (Kind::Write, "USAGE on schema app", ForCopy),
            (Kind::CreateTable, "schema app", Swap),
            (Kind::Write, "USAGE on schema app", ForCopy),
        ],
    );
    check(
        "GRANT ALL ON SCHEMA app TO mover; SET allow_in_place_tablespaces = on; CREATE TABLESPACE elsewhere LOCATION '';
         ALTER INDEX app.t_note SET TABLESPACE elsewhere",
        &[(Kind::Tablespace, "tablespace elsewhere", Both)],
    );
    check("ALTER INDEX app.t_note SET TABLESPACE pg_default; DROP TABLESPACE elsewhere", &[]);
}

/// The kinds that the statements return are those of the type, and each was seen in these tests.
#[test]
fn every_kind_is_returned_and_tested() {
    let sources = [include_str!("../sql/obstacles.sql"), include_str!("../obstacles.rs")].concat();
    let tests = include_str!("obstacles.rs");
    for kind in Kind::ALL {
        let name = format!("{kind:?}");
        let code = name.chars().fold(String::new(), |mut code, c| {
            if c.is_uppercase() && !code.is_empty() {
                code.push('_');
            }
            code.extend(c.to_lowercase());
            code
        });
        assert!(Kind::named(&code) == Some(*kind), "{code} is not {kind:?}");
        assert!(
            sources.contains(&format!("'{code}'")) || sources.contains(&format!("Kind::{name}")),
            "{name} is never returned"
        );
        assert!(tests.contains(&format!("(Kind::{name},")), "{name} is not tested");
    }
}
