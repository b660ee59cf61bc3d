use postgres::error::SqlState;
use postgres::{Client, NoTls};

use super::snapshot::version;
use super::{copied, tables, value, within};
use crate::store::read_model::{Copy, Obstacle, Refusal, Replaced, obstacles, replace};
use crate::store::testing;

/// Creates tables and their copies.
fn set_up(sql: &str, names: &[&str]) -> (Client, Vec<Copy>) {
    let mut client = testing::connect();
    client.batch_execute(&format!("CREATE SCHEMA app; SET search_path = app; {sql}")).unwrap();
    let tables = tables(&mut client, names);
    let copies = copied(&mut client, &tables);
    (client, copies)
}

fn replaced(client: &mut Client, copies: &[Copy]) -> Replaced {
    within(client, |tx| replace(tx, copies))
}

/// The rows of a table, sorted.
fn rows(client: &mut Client, table: &str) -> Vec<String> {
    let rows = client.query(&format!("SELECT whole::text FROM {table} AS whole"), &[]).unwrap();
    let mut rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    rows.sort_unstable();
    rows
}

fn counts(deleted: u64, updated: u64, inserted: u64) -> Replaced {
    Replaced { deleted, updated, inserted }
}

#[test]
fn only_rows_that_differ_are_touched() {
    let (mut client, copies) =
        set_up("CREATE TABLE t (id int PRIMARY KEY, text text, twice int GENERATED ALWAYS AS (id * 2) STORED)", &["t"]);
    client
        .batch_execute(
            "INSERT INTO app.t VALUES (1, 'same'), (2, 'gone'), (3, 'old'), (4, NULL);
             INSERT INTO copies.t VALUES (1, 'same'), (3, 'new'), (4, 'some'), (5, 'more'), (6, NULL)",
        )
        .unwrap();
    let place = "SELECT ctid::text FROM app.t WHERE id = 1";
    let before: String = value(&mut client, place);
    assert_eq!(replaced(&mut client, &copies), counts(1, 2, 2));
    assert_eq!(rows(&mut client, "app.t"), ["(1,same,2)", "(3,new,6)", "(4,some,8)", "(5,more,10)", "(6,,12)"]);
    assert_eq!(value::<String>(&mut client, place), before);
    assert_eq!(replaced(&mut client, &copies), counts(0, 0, 0));
}

#[test]
fn types_without_equality_and_equal_values_are_compared() {
    let (mut client, copies) = set_up(
        "CREATE TABLE t (id int PRIMARY KEY, json json, point point, xml xml, number numeric, box box, float float8)",
        &["t"],
    );
    let row = "1, '{\"a\": 1}', '(1,2)', '<a/>', 1.0, '(1,1),(0,0)', 0";
    client.batch_execute(&format!("INSERT INTO app.t VALUES ({row}); INSERT INTO copies.t VALUES ({row})")).unwrap();
    assert_eq!(replaced(&mut client, &copies), counts(0, 0, 0));
    for change in [
        "json = '{\"a\":1}'",
        "point = '(1,3)'",
        "xml = '<b/>'",
        "number = 1.00",
        "box = '(1,2),(0,0)'",
        "float = '-0'",
        "json = NULL",
    ] {
        client.batch_execute(&format!("UPDATE copies.t SET {change}")).unwrap();
        assert_eq!(replaced(&mut client, &copies), counts(0, 1, 0), "{change}");
        assert_eq!(rows(&mut client, "app.t"), rows(&mut client, "copies.t"), "{change}");
    }
}

#[test]
fn a_table_without_a_key_is_filled_again() {
    let (mut client, copies) =
        set_up("CREATE TABLE t (a int UNIQUE, b text); CREATE TABLE nothing ()", &["t", "nothing"]);
    client
        .batch_execute(
            "INSERT INTO app.t VALUES (1, 'a'), (2, 'b'); INSERT INTO copies.t VALUES (2, 'a'), (1, 'b'), (NULL, 'c');
             INSERT INTO app.nothing DEFAULT VALUES;
             INSERT INTO copies.nothing DEFAULT VALUES; INSERT INTO copies.nothing DEFAULT VALUES",
        )
        .unwrap();
    assert_eq!(replaced(&mut client, &copies), counts(3, 0, 5));
    assert_eq!(rows(&mut client, "app.t"), ["(,c)", "(1,b)", "(2,a)"]);
    assert_eq!(value::<i64>(&mut client, "SELECT count(*) FROM app.nothing"), 2);
}

#[test]
fn unique_values_may_move_between_rows() {
    let (mut client, copies) = set_up(
        "CREATE TABLE t (id int PRIMARY KEY, email text UNIQUE, during int4range, EXCLUDE USING gist (during WITH &&));
         CREATE TABLE refers (t int REFERENCES t)",
        &["t"],
    );
    client
        .batch_execute(
            "INSERT INTO app.t VALUES (1, 'a', '[1,3)'), (2, 'b', '[3,5)'), (3, 'c', '[5,7)'), (4, 'd', '[7,9)');
             INSERT INTO app.refers VALUES (1), (2);
             INSERT INTO copies.t VALUES (1, 'b', '[3,5)'), (2, 'c', '[1,3)'), (4, 'd', '[7,9)'), (5, 'a', '[5,7)')",
        )
        .unwrap();
    // Rows 1 and 2 are deleted and inserted again, and the foreign key is satisfied at the end.
    assert_eq!(replaced(&mut client, &copies), counts(1, 2, 1));
    assert_eq!(rows(&mut client, "app.t"), rows(&mut client, "copies.t"));
    assert_eq!(value::<i64>(&mut client, "SELECT count(*) FROM app.refers"), 2);
    client.batch_execute("DELETE FROM copies.t WHERE id = 1").unwrap();
    let mut tx = client.transaction().unwrap();
    let error = replace(&mut tx, &copies).unwrap_err();
    assert!(
        matches!(&error, Refusal::Database(error) if error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION)),
        "{error}"
    );
}

/// Rows to which such a foreign key refers are updated: their deletion would take others away.
#[test]
fn foreign_keys_that_cascade_delete_only_for_gone_rows() {
    let (mut client, copies) = set_up(
        "CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE); CREATE TABLE refers (t int REFERENCES t ON DELETE CASCADE)",
        &["t"],
    );
    client
        .batch_execute(
            "INSERT INTO app.t VALUES (1, 'a'), (2, 'b'); INSERT INTO app.refers VALUES (1), (2); INSERT INTO copies.t VALUES (1, 'b')",
        )
        .unwrap();
    assert_eq!(replaced(&mut client, &copies), counts(1, 1, 0));
    assert_eq!(rows(&mut client, "app.refers"), ["(1)"]);
}

#[test]
fn tables_that_refer_to_each_other_are_replaced_together() {
    let (mut client, copies) = set_up(
        "CREATE TABLE parents (id int PRIMARY KEY, up int REFERENCES parents);
         CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE RESTRICT ON UPDATE CASCADE);
         ALTER TABLE parents ADD child int REFERENCES children",
        &["children", "parents"],
    );
    let fill = |schema: &str, parents: &str, children: &str| {
        format!(
            "INSERT INTO {schema}.parents SELECT DISTINCT id, up FROM (VALUES {parents}) AS v (id, up, child);
             INSERT INTO {schema}.children VALUES {children};
             UPDATE {schema}.parents p SET child = v.child FROM (VALUES {parents}) AS v (id, up, child) WHERE v.id = p.id;"
        )
    };
    client.batch_execute(&fill("app", "(1, 1, 10), (2, 1, 20)", "(10, 1), (20, 2), (30, 2)")).unwrap();
    client.batch_execute(&fill("copies", "(2, 3, 40), (3, 2, 20)", "(20, 3), (40, 2)")).unwrap();
    assert_eq!(replaced(&mut client, &copies), counts(3, 2, 2));
    for table in ["parents", "children"] {
        assert_eq!(rows(&mut client, &format!("app.{table}")), rows(&mut client, &format!("copies.{table}")));
    }
}

#[test]
fn identities_are_kept_and_sequences_taken_over() {
    let (mut client, copies) = set_up(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, n serial, k int PRIMARY KEY, d int GENERATED BY DEFAULT AS IDENTITY (INCREMENT -1))",
        &["t"],
    );
    client
        .batch_execute(
            "INSERT INTO app.t (k) VALUES (1), (2), (3); INSERT INTO copies.t (k) VALUES (0), (1), (2), (3), (4);
             DELETE FROM copies.t WHERE k = 0",
        )
        .unwrap();
    assert_eq!(replaced(&mut client, &copies), counts(0, 3, 1));
    assert_eq!(rows(&mut client, "app.t"), ["(2,2,1,-2)", "(3,3,2,-3)", "(4,4,3,-4)", "(5,5,4,-5)"]);
    client.batch_execute("INSERT INTO app.t (k) VALUES (9)").unwrap();
    assert_eq!(rows(&mut client, "app.t")[4], "(6,6,9,-6)");
    // A value that was handed out is never handed out again, not even after a rollback.
    client.batch_execute("DELETE FROM app.t WHERE k = 9").unwrap();
    replaced(&mut client, &copies);
    client.batch_execute("INSERT INTO app.t (k) VALUES (9)").unwrap();
    assert_eq!(rows(&mut client, "app.t")[4], "(7,7,9,-7)");
}

#[test]
fn triggers_fire_under_the_search_path_of_the_caller() {
    let (mut client, copies) = set_up(
        "CREATE TABLE log (line text); CREATE TABLE t (id int PRIMARY KEY, CHECK (id > 0));
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log VALUES (TG_OP); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
         CREATE FUNCTION always_equal(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE OPERATOR = (LEFTARG = int, RIGHTARG = int, FUNCTION = always_equal);
         CREATE FUNCTION count() RETURNS bigint LANGUAGE sql AS 'SELECT 7::bigint'",
        &["t"],
    );
    client
        .batch_execute(
            "INSERT INTO app.t VALUES (1); INSERT INTO copies.t VALUES (2); SET search_path = app, pg_catalog",
        )
        .unwrap_err();
    client
        .batch_execute("SET search_path = app; INSERT INTO app.t VALUES (1); INSERT INTO copies.t VALUES (2)")
        .unwrap();
    client.batch_execute("SET search_path = app, pg_catalog").unwrap();
    assert_eq!(replaced(&mut client, &copies), counts(1, 0, 1));
    assert_eq!(rows(&mut client, "app.log"), ["(DELETE)", "(INSERT)", "(INSERT)"]);
}

#[test]
fn readers_are_not_blocked_and_see_all_or_nothing() {
    let url = testing::database();
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute("CREATE SCHEMA app; CREATE TABLE app.t (id int, n int); INSERT INTO app.t SELECT i, 1 FROM generate_series(1, 10) i").unwrap();
    let tables = tables(&mut client, &["t"]);
    let copies = copied(&mut client, &tables);
    client.batch_execute("INSERT INTO copies.t SELECT i, 2 FROM generate_series(1, 20) i").unwrap();
    let mut reader = Client::connect(&url, NoTls).unwrap();
    reader.batch_execute("SET lock_timeout = '50ms'").unwrap();
    let sum = "SELECT sum(n)::int8 FROM app.t";
    let mut snapshot =
        reader.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start().unwrap();
    assert_eq!(snapshot.query_one(sum, &[]).unwrap().get::<_, i64>(0), 10);
    let mut tx = client.transaction().unwrap();
    assert_eq!(replace(&mut tx, &copies).unwrap(), counts(10, 0, 20));
    let read = |client: &mut postgres::Transaction<'_>| client.query_one(sum, &[]).unwrap().get::<_, i64>(0);
    assert_eq!(read(&mut snapshot), 10);
    let mut other = Client::connect(&url, NoTls).unwrap();
    assert_eq!(value::<i64>(&mut other, sum), 10);
    other.batch_execute("SET lock_timeout = '50ms'").unwrap();
    assert_eq!(
        other.batch_execute("INSERT INTO app.t VALUES (1, 1)").unwrap_err().code(),
        Some(&SqlState::LOCK_NOT_AVAILABLE)
    );
    tx.commit().unwrap();
    // An old snapshot still sees the old rows, unlike after TRUNCATE.
    assert_eq!(read(&mut snapshot), 10);
    snapshot.commit().unwrap();
    assert_eq!(value::<i64>(&mut reader, sum), 40);
}

/// What hinders only a swap does not matter where the live tables stay.
#[test]
fn dependents_do_not_matter_where_the_tables_stay() {
    let mut client = testing::connect();
    client
        .batch_execute(
            "CREATE SCHEMA app; CREATE TABLE app.kinds (id int PRIMARY KEY); INSERT INTO app.kinds VALUES (1);
             CREATE TABLE app.t (id int PRIMARY KEY, kind int CONSTRAINT known REFERENCES app.kinds);
             CREATE VIEW app.v AS SELECT * FROM app.t; CREATE POLICY p ON app.t; CREATE STATISTICS app.s ON id, kind FROM app.t;
             CREATE TABLE app.refers (t int REFERENCES app.t); CREATE PUBLICATION p FOR TABLE app.t; CREATE TABLE app._t ()",
        )
        .unwrap();
    let tables = tables(&mut client, &["t"]);
    let found = obstacles(&mut client, &tables, &[]).unwrap();
    assert_eq!(found.len(), 7, "{found:?}");
    assert!(!found.iter().any(Obstacle::hinders_copy), "{found:?}");
    let copies = copied(&mut client, &tables);
    client.batch_execute("INSERT INTO app.t VALUES (1, 1); INSERT INTO copies.t VALUES (2, 1)").unwrap();
    assert_eq!(replaced(&mut client, &copies), counts(1, 0, 1));
    assert_eq!(rows(&mut client, "app.v"), ["(2,1)"]);
    // The live table still checks its foreign key, which the copy does not have.
    client.batch_execute("INSERT INTO copies.t VALUES (3, 7)").unwrap();
    let error = replace(&mut client.transaction().unwrap(), &copies).unwrap_err().to_string();
    assert!(error.contains("known"), "{error}");
}

/// Such a key compares with other operators than equality.
#[test]
fn a_temporal_key_is_carried_over() {
    if version(&mut testing::connect()) < 18 {
        return;
    }
    let (mut client, copies) = set_up(
        "CREATE TABLE t (id int4range, valid int4range, note text, PRIMARY KEY (id, valid WITHOUT OVERLAPS));
         CREATE TABLE refers (t int4range, during int4range, FOREIGN KEY (t, PERIOD during) REFERENCES t (id, PERIOD valid))",
        &["refers", "t"],
    );
    client
        .batch_execute(
            "INSERT INTO app.t VALUES ('[1,2)', '[1,5)', 'a'); INSERT INTO app.refers VALUES ('[1,2)', '[2,3)');
             INSERT INTO copies.t VALUES ('[1,2)', '[2,4)', 'a'), ('[1,2)', '[4,6)', 'b'); INSERT INTO copies.refers VALUES ('[1,2)', '[2,6)')",
        )
        .unwrap();
    assert_eq!(replaced(&mut client, &copies), counts(2, 0, 3));
    assert_eq!(rows(&mut client, "app.t"), rows(&mut client, "copies.t"));
}

#[test]
fn a_table_that_is_gone_is_refused() {
    let (mut client, copies) = set_up("CREATE TABLE t (); CREATE SCHEMA other", &["t"]);
    client.batch_execute("ALTER TABLE app.t SET SCHEMA other; CREATE TABLE app.t ()").unwrap();
    let mut tx = client.transaction().unwrap();
    assert!(matches!(replace(&mut tx, &copies).unwrap_err(), Refusal::Gone(_)));
    drop(tx);
    assert_eq!(within(&mut client, |tx| replace(tx, &[])), counts(0, 0, 0));
}

/// Random rows with random differences, in tables of several kinds.
#[test]
fn random_content_becomes_equal() {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut client, copies) = set_up(
        "CREATE TABLE keyed (id int PRIMARY KEY, a text, j json);
         CREATE TABLE pair (a int, b text COLLATE \"C\", c int UNIQUE, PRIMARY KEY (b, a));
         CREATE TABLE bare (a int, b text[]);
         CREATE TABLE child (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int REFERENCES keyed, p point)",
        &["child", "keyed", "pair", "bare"],
    );
    for round in 0..30 {
        for schema in ["app", "copies"] {
            let rows = rng.u32(0..40);
            client.batch_execute(&format!("SET search_path = {schema}; SELECT setseed({})", rng.f64())).unwrap();
            client
                .batch_execute(&format!(
                    "DELETE FROM child; DELETE FROM keyed; DELETE FROM pair; DELETE FROM bare;
                     INSERT INTO keyed SELECT i, substr('abc', (random() * 3)::int, 1), CASE WHEN random() < 0.8 THEN json_build_object('a', (random() * 2)::int) END
                         FROM generate_series(1, {rows}) i WHERE random() < 0.7;
                     INSERT INTO pair SELECT i, chr(97 + (random() * 2)::int), CASE WHEN random() < 0.8 THEN (i * 7 + {round} + {shift}) % 41 END
                         FROM generate_series(0, {rows}) i WHERE random() < 0.7;
                     INSERT INTO bare SELECT (random() * 3)::int, ARRAY[chr(97 + (random() * 2)::int)] FROM generate_series(1, {rows});
                     INSERT INTO child (id, parent, p) OVERRIDING SYSTEM VALUE SELECT i, (SELECT id FROM keyed ORDER BY random() + i LIMIT 1), point(i, (random() * 2)::int)
                         FROM generate_series(1, {rows}) i WHERE random() < 0.7",
                    shift = rng.u32(0..41),
                ))
                .unwrap_or_else(|error| panic!("SEED={seed}: {}", crate::error::describe(&error)));
        }
        let counted: i64 = ["child", "keyed", "pair", "bare"]
            .iter()
            .map(|table| value::<i64>(&mut client, &format!("SELECT count(*) FROM app.{table}")))
            .sum();
        let Replaced { deleted, inserted, .. } = replaced(&mut client, &copies);
        let mut left: i64 = 0;
        for table in ["child", "keyed", "pair", "bare"] {
            let now = rows(&mut client, &format!("app.{table}"));
            assert_eq!(now, rows(&mut client, &format!("copies.{table}")), "SEED={seed}: {table} in round {round}");
            left += i64::try_from(now.len()).unwrap();
        }
        assert_eq!(counted - i64::try_from(deleted).unwrap() + i64::try_from(inserted).unwrap(), left, "SEED={seed}");
        assert_eq!(replaced(&mut client, &copies[..3]), counts(0, 0, 0), "SEED={seed}");
    }
}
