use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use postgres::{Client, NoTls};

use super::snapshot::{differences, snapshot};
use super::swap;
use super::{copied, tables, value, within};
use crate::store::read_model::{Copy, Refusal, Table, create, obstacles, related, remove};
use crate::store::testing;

const ORDERS: &str = "CREATE SCHEMA app; CREATE TABLE app.orders (id serial PRIMARY KEY, note text);
                      INSERT INTO app.orders (note) SELECT 'old' FROM generate_series(1, 100)";

/// A database with `app.orders`, and the table.
fn orders() -> (Client, Vec<Table>) {
    let mut client = testing::connect();
    client.batch_execute(ORDERS).unwrap();
    let tables = tables(&mut client, &["orders"]);
    (client, tables)
}

fn swapped(client: &mut Client, copies: &[Copy], old: &str) {
    within(client, |tx| {
        for copy in copies {
            tx.batch_execute(&format!("LOCK TABLE {}, copies.\"{}\"", copy.table.quoted(), copy.table.name))?;
        }
        swap(tx, copies, old)
    });
}

#[test]
fn copies_are_swapped_and_swapped_back() {
    let (mut client, tables) = orders();
    client
        .batch_execute(
            "SET search_path = pg_catalog; SET quote_all_identifiers = on; SET default_tablespace = 'pg_default'",
        )
        .unwrap();
    let copies = copied(&mut client, &tables);
    client.batch_execute("INSERT INTO copies.orders (note) VALUES ('new')").unwrap();
    assert_eq!(value::<i64>(&mut client, "SELECT last_value FROM copies.orders_id_seq"), 1);
    assert_eq!(value::<i64>(&mut client, "SELECT last_value FROM app.orders_id_seq"), 100);
    let options = "SELECT coalesce(reloptions::text, '') FROM pg_class WHERE oid = 'copies.orders'::regclass";
    assert_eq!(value::<String>(&mut client, options), "");

    swapped(&mut client, &copies, "old");
    assert_eq!(value::<String>(&mut client, "SELECT string_agg(note, '') FROM app.orders"), "new");
    assert_eq!(value::<i64>(&mut client, "SELECT count(*) FROM old.orders"), 100);
    assert!(!value::<bool>(&mut client, "SELECT to_regnamespace('copies') IS NOT NULL"));
    assert_eq!(value::<String>(&mut client, &options.replace("copies", "app")), "");
    assert_eq!(value::<String>(&mut client, "SHOW search_path"), "pg_catalog");
    client.batch_execute("INSERT INTO app.orders DEFAULT VALUES; INSERT INTO old.orders DEFAULT VALUES").unwrap();
    assert_eq!(value::<i32>(&mut client, "SELECT max(id) FROM app.orders"), 2);
    assert_eq!(value::<i32>(&mut client, "SELECT max(id) FROM old.orders"), 101);

    let live = Table { oid: copies[0].oid, ..tables[0].clone() };
    let back = [Copy { table: live, oid: tables[0].oid }];
    within(&mut client, |tx| swap(tx, &back, "discarded"));
    assert_eq!(value::<i64>(&mut client, "SELECT count(*) FROM app.orders"), 101);
    within(&mut client, |tx| Ok(remove(tx, "discarded", &[copies[0].oid])?));
    assert!(!value::<bool>(&mut client, "SELECT to_regnamespace('discarded') IS NOT NULL"));
}

#[test]
fn settings_of_the_transaction_are_restored() {
    let (mut client, tables) = orders();
    client.batch_execute("CREATE ROLE settler SUPERUSER").unwrap();
    let mut tx = client.transaction().unwrap();
    tx.batch_execute(
        "SET LOCAL search_path = app, public; SET LOCAL ROLE settler; SET LOCAL quote_all_identifiers = on",
    )
    .unwrap();
    create(&mut tx, "copies", &tables, &[]).unwrap();
    let row = tx
        .query_one(
            "SELECT current_setting('search_path'), current_user::text, current_setting('quote_all_identifiers')",
            &[],
        )
        .unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("app, public", "settler", "on"));
    tx.rollback().unwrap();
    assert_eq!(value::<String>(&mut client, "SHOW search_path"), "\"$user\", public");
}

#[test]
fn a_table_that_has_changed_is_not_swapped() {
    let (mut client, tables) = orders();
    let copies = copied(&mut client, &tables);
    client.batch_execute("CREATE ROLE late").unwrap();
    for (change, told) in [
        ("ALTER TABLE app.orders ADD COLUMN late int", "only the table has \"CREATE TABLE copies.orders (id integer"),
        ("CREATE INDEX late ON app.orders (note)", "only the table has \"CREATE INDEX late ON copies.orders"),
        ("GRANT SELECT ON app.orders TO late", "only the table has \"GRANT SELECT ON TABLE copies.orders TO late\""),
        ("COMMENT ON COLUMN app.orders.note IS 'late'", "COMMENT ON COLUMN copies.orders.note IS 'late'"),
        ("ALTER TABLE app.orders ALTER note SET DEFAULT 'late'", "SET DEFAULT 'late'::text"),
        ("ALTER SEQUENCE app.orders_id_seq CACHE 7", "CACHE 7"),
        ("ALTER TABLE copies.orders SET UNLOGGED", "CREATE UNLOGGED TABLE copies.orders"),
        (
            "DROP INDEX IF EXISTS late; ALTER TABLE app.orders RENAME TO other",
            "table app.orders was dropped, renamed or moved",
        ),
        ("CREATE SCHEMA other; ALTER TABLE app.orders SET SCHEMA other", "was dropped, renamed or moved"),
        ("DROP TABLE app.orders", "was dropped, renamed or moved"),
    ] {
        let mut tx = client.transaction().unwrap();
        tx.batch_execute(change).unwrap();
        let error = swap(&mut tx, &copies, "old").unwrap_err().to_string();
        assert!(error.contains(told), "{change}: {error}");
    }
    // Autovacuum may be set at any time.
    client.batch_execute("ALTER TABLE app.orders SET (autovacuum_enabled = true, fillfactor = 50)").unwrap();
    client.batch_execute("ALTER TABLE copies.orders SET (fillfactor = 50)").unwrap();
    swapped(&mut client, &copies, "old");
    let options: Vec<String> = value(&mut client, "SELECT reloptions FROM pg_class WHERE oid = 'app.orders'::regclass");
    assert_eq!(options, ["autovacuum_enabled=true", "fillfactor=50"]);
}

#[test]
fn only_what_belongs_to_the_copies_is_dropped() {
    let (mut client, tables) = orders();
    let copies = copied(&mut client, &tables);
    let oids = [copies[0].oid];
    client.batch_execute("CREATE VIEW app.theirs AS SELECT * FROM copies.orders").unwrap();
    let refused = |client: &mut Client| {
        let mut tx = client.transaction().unwrap();
        crate::error::describe(&remove(&mut tx, "copies", &oids).unwrap_err())
    };
    assert!(refused(&mut client).contains("view app.theirs depends on table copies.orders"));
    client.batch_execute("DROP VIEW app.theirs; CREATE TABLE copies.theirs ()").unwrap();
    assert!(refused(&mut client).contains("table copies.theirs depends on schema copies"));
    client
        .batch_execute("DROP TABLE copies.theirs; CREATE TABLE copies.more (id int REFERENCES copies.orders)")
        .unwrap();
    let more = value::<u32>(&mut client, "SELECT 'copies.more'::regclass::oid");
    assert!(refused(&mut client).contains("constraint more_id_fkey"));
    // A table elsewhere is left, whatever its oid.
    let all = [oids[0], more, tables[0].oid];
    within(&mut client, |tx| Ok(remove(tx, "copies", &all)?));
    within(&mut client, |tx| Ok(remove(tx, "copies", &all)?));
    assert_eq!(value::<i64>(&mut client, "SELECT count(*) FROM app.orders"), 100);
}

/// A transaction that writes only to a table locks just these relations.
#[test]
fn related_relations_are_those_that_writers_lock() {
    let (mut client, _) = orders();
    client
        .batch_execute(
            "CREATE TABLE app.two (a int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b text, c bigserial UNIQUE);
             ALTER TABLE app.two ALTER b SET STORAGE EXTERNAL",
        )
        .unwrap();
    let tables = tables(&mut client, &["orders", "two"]);
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    client.batch_execute("SET search_path = app").unwrap();
    let found = related(&mut client, &oids).unwrap();
    let mut tx = client.transaction().unwrap();
    tx.batch_execute(
        "INSERT INTO app.orders (note) VALUES (repeat('x', 100000)); INSERT INTO app.two (b) VALUES (repeat('y', 100000));
         UPDATE app.two SET b = 'short'; DELETE FROM app.orders",
    )
    .unwrap();
    let rows = tx.query(
        "SELECT DISTINCT relation FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'RowExclusiveLock' ORDER BY 1",
        &[],
    );
    let locked: Vec<u32> = rows.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(locked.iter().all(|oid| found.contains(oid)), "{locked:?} are not all among {found:?}");
    assert!(locked.contains(&oids[0]) && locked.len() >= 6, "{locked:?}");
    // Two tables, three indexes, two TOAST tables with their indexes, three sequences.
    assert_eq!(found.len(), 12);
}

/// Readers see all of the old content or all of the new one, and no error.
#[test]
fn a_reader_with_a_prepared_statement_notices_nothing() {
    let url = testing::database();
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(ORDERS).unwrap();
    let tables = tables(&mut client, &["orders"]);
    let copies = copied(&mut client, &tables);
    client.batch_execute("INSERT INTO copies.orders (note) SELECT 'new' FROM generate_series(1, 100)").unwrap();
    let (sender, seen) = mpsc::channel();
    let (stop, stopped) = (AtomicBool::new(false), url);
    thread::scope(|scope| {
        for is_generic in [true, false] {
            let (sender, stop, url) = (sender.clone(), &stop, &stopped);
            scope.spawn(move || {
                let mut reader = Client::connect(url, NoTls).unwrap();
                let mode = if is_generic { "force_generic_plan" } else { "auto" };
                reader.batch_execute(&format!("SET search_path = app; SET plan_cache_mode = {mode}")).unwrap();
                let statement =
                    reader.prepare("SELECT min(note), max(note), count(*) FROM orders WHERE id > $1").unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let row = reader.query_one(&statement, &[&0_i32]).unwrap();
                    let (least, most, count): (String, String, i64) = (row.get(0), row.get(1), row.get(2));
                    assert_eq!((&least, count), (&most, 100));
                    sender.send(least).unwrap();
                }
            });
        }
        let wait_for = |note: &str| while seen.recv().unwrap() != note {};
        wait_for("old");
        swapped(&mut client, &copies, "old");
        wait_for("new");
        let back = [Copy { table: Table { oid: copies[0].oid, ..tables[0].clone() }, oid: tables[0].oid }];
        within(&mut client, |tx| {
            tx.batch_execute("LOCK TABLE app.orders, old.orders")?;
            swap(tx, &back, "newer")
        });
        wait_for("old");
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_event_trigger_that_changes_a_copy_is_noticed() {
    let (mut client, tables) = orders();
    client
        .batch_execute(
            "CREATE FUNCTION public.meddle() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
                 ALTER TABLE copies.orders ALTER COLUMN note SET STATISTICS 7;
             END $$;
             CREATE EVENT TRIGGER meddler ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.meddle()",
        )
        .unwrap();
    let mut tx = client.transaction().unwrap();
    let error = create(&mut tx, "copies", &tables, &[]).unwrap_err();
    assert!(matches!(&error, Refusal::Different { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("only the copy has \"ALTER TABLE copies.orders ALTER COLUMN note SET STATISTICS 7\""),
        "{error}"
    );
}

/// Roles belong to the whole server, so these have names of their own.
#[test]
fn a_member_of_the_owner_copies_and_swaps() {
    let url = testing::database();
    let mut admin = Client::connect(&url, NoTls).unwrap();
    let database: String = value(&mut admin, "SELECT current_database()::text");
    admin
        .batch_execute(&format!(
            "CREATE ROLE swapper LOGIN; CREATE ROLE \"swap owner\"; CREATE ROLE swap_grantor; CREATE ROLE swap_reader; CREATE ROLE swap_worker LOGIN;
             GRANT \"swap owner\", swap_grantor TO swapper; GRANT CREATE ON DATABASE {database} TO swapper;
             {ORDERS}; ALTER TABLE app.orders OWNER TO \"swap owner\"; GRANT USAGE ON SCHEMA app TO swap_reader, swap_grantor, swap_worker;
             GRANT USAGE, CREATE ON SCHEMA app TO swapper;
             GRANT SELECT ON app.orders TO swap_grantor WITH GRANT OPTION; GRANT INSERT (note) ON app.orders TO swap_worker;
             GRANT USAGE ON SEQUENCE app.orders_id_seq TO swap_worker;
             SET ROLE swap_grantor; GRANT SELECT ON app.orders TO swap_reader; RESET ROLE;
             -- These privileges are not those of the tables.
             ALTER DEFAULT PRIVILEGES FOR ROLE swapper GRANT ALL ON TABLES TO PUBLIC;
             ALTER DEFAULT PRIVILEGES FOR ROLE swapper GRANT ALL ON SEQUENCES TO PUBLIC"
        ))
        .unwrap();
    let before = snapshot(&mut admin, "app");
    let mut client = Client::connect(&url.replace("postgres@", "swapper@"), NoTls).unwrap();
    let tables = tables(&mut client, &["orders"]);
    assert_eq!(
        obstacles(&mut client, &tables, &[]).unwrap().iter().filter(|obstacle| obstacle.hinders_swap()).count(),
        0
    );
    let copies = within(&mut client, |tx| create(tx, "copies", &tables, &["swap_worker"]));
    let mut may_use = |role: &str| -> bool {
        value(&mut admin, &format!("SELECT has_schema_privilege('{role}', 'copies', 'USAGE')"))
    };
    for role in ["swapper", "swap owner", "swap_grantor", "swap_reader", "swap_worker"] {
        assert!(may_use(role), "{role}");
    }
    assert!(!value::<bool>(&mut admin, "SELECT has_schema_privilege('swap owner', 'copies', 'CREATE')"));
    let mut worker = Client::connect(&url.replace("postgres@", "swap_worker@"), NoTls).unwrap();
    worker.batch_execute("SET search_path = copies; INSERT INTO orders (note) VALUES ('new')").unwrap();
    swapped(&mut client, &copies, "old");
    let after = snapshot(&mut admin, "app");
    assert!(before == after, "{}", differences(&before, &after));
    within(&mut client, |tx| Ok(remove(tx, "old", &[tables[0].oid])?));
    assert_eq!(value::<i64>(&mut admin, "SELECT count(*) FROM app.orders"), 1);
}

#[test]
fn everyone_may_use_the_copies_of_a_public_table() {
    let (mut client, tables) = orders();
    client.batch_execute("GRANT SELECT ON app.orders TO PUBLIC").unwrap();
    copied(&mut client, &tables);
    assert!(value::<bool>(&mut client, "SELECT has_schema_privilege('public', 'copies', 'USAGE')"));
}

/// An array type takes the first free name, which another type may have in the table's schema.
#[test]
fn tables_whose_types_collide_are_swapped_together() {
    let mut client = testing::connect();
    client
        .batch_execute("CREATE SCHEMA app; CREATE TABLE app.t (); CREATE TABLE app._t (); CREATE TABLE app.__t ()")
        .unwrap();
    let tables = tables(&mut client, &["_t", "__t", "t"]);
    assert_eq!(obstacles(&mut client, &tables, &[]).unwrap(), []);
    let copies = copied(&mut client, &tables);
    swapped(&mut client, &copies, "old");
    assert_eq!(value::<i64>(&mut client, "SELECT count(*) FROM pg_tables WHERE schemaname = 'app'"), 3);
}

#[test]
fn expressions_may_refer_to_their_own_table() {
    let (mut client, tables) = orders();
    client
        .batch_execute(
            "ALTER TABLE app.orders ALTER note SET DEFAULT concat('app.orders'::regclass, 'app.orders_pkey'::regclass, '''app.orders''::regclass');
             ALTER TABLE app.orders ADD CHECK (tableoid = 'app.orders'::regclass)",
        )
        .unwrap();
    let before = snapshot(&mut client, "app");
    let copies = copied(&mut client, &tables);
    client.batch_execute("INSERT INTO copies.orders DEFAULT VALUES").unwrap();
    swapped(&mut client, &copies, "old");
    let after = snapshot(&mut client, "app");
    assert!(before == after, "{}", differences(&before, &after));
    within(&mut client, |tx| Ok(remove(tx, "old", &[tables[0].oid])?));
    let note: String = value(&mut client, "SELECT note FROM app.orders");
    assert_eq!(note, "copies.orderscopies.orders_pkey'app.orders'::regclass");
}

#[test]
fn foreign_keys_use_the_same_index_again() {
    for names in [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]] {
        let mut client = testing::connect();
        let [first, second, third] = names;
        client
            .batch_execute(&format!(
                "CREATE SCHEMA app; CREATE TABLE app.t (id int NOT NULL, t int);
                 ALTER TABLE app.t ADD CONSTRAINT {first} UNIQUE (id); CREATE UNIQUE INDEX {second} ON app.t (id);
                 ALTER TABLE app.t ADD CONSTRAINT {third} PRIMARY KEY (id); ALTER TABLE app.t ADD CONSTRAINT k FOREIGN KEY (t) REFERENCES app.t (id)"
            ))
            .unwrap();
        let tables = tables(&mut client, &["t"]);
        let copies = copied(&mut client, &tables);
        swapped(&mut client, &copies, "old");
        let index =
            "SELECT conindid::regclass::text FROM pg_constraint WHERE conname = 'k' AND conrelid = 'app.t'::regclass";
        assert_eq!(value::<String>(&mut client, index), format!("app.{first}"));
    }
}
