//! Rebuilds under roles that have no more privileges than they need.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use postgres::{Client, IsolationLevel, NoTls};
use pupsourcing_orchestrator::{Builder, Database};
use serde_json::json;

use crate::support::commands::{outcome, refused};
use crate::support::ledger::append_plainly;
use crate::support::rebuilds::{Model, await_exact, begin_rebuild, begin_rebuild_with, schemas};
use crate::support::workers::{await_running, builder};
use crate::support::{TestDatabase, database, eventually};

const SCRIPT: &str = include_str!("../../examples/postgres/roles.sql");

/// What the owner of a read model needs beside its tables, to rebuild it.
const OWNER: &str = "
    GRANT CREATE ON DATABASE :database TO shop_owner;
    GRANT USAGE, CREATE ON SCHEMA public TO shop_owner;
    GRANT SELECT ON events TO shop_owner;
    GRANT SELECT, UPDATE ON orchestrator_replica_sets, orchestrator_commands TO shop_owner;
    GRANT SELECT, INSERT, UPDATE, DELETE ON orchestrator_projections, orchestrator_checkpoints, orchestrator_parked, orchestrator_discarded,
                                            orchestrator_rebuilds TO shop_owner";

/// What the worker needs for rebuilds.
const WORKER: &str = "
    GRANT SELECT, INSERT, UPDATE, DELETE ON orchestrator_rebuilds TO shop_worker;
    GRANT INSERT ON orchestrator_commands TO shop_worker";

/// A database with roles of its own, because roles belong to the whole server. The role `owner`
/// owns the read model, the role `reader` reads it.
struct Roles {
    database: TestDatabase,
    admin: Client,
    prefix: String,
    /// The roles as which handlers were called in a rebuild.
    handled_by: Arc<Mutex<BTreeSet<String>>>,
}

impl Roles {
    fn prepared() -> Self {
        static PREFIXES: AtomicUsize = AtomicUsize::new(0);
        let database = database();
        let prefix = format!("rebuild_{}_{}", std::process::id(), PREFIXES.fetch_add(1, Ordering::Relaxed));
        let mut roles = Self { admin: database.client(), database, prefix, handled_by: Arc::default() };
        let (before, grants) = SCRIPT.split_once("-- After the migration:").unwrap();
        roles.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC");
        roles.execute(before);
        builder(&roles.url("migrator"), "set").projection(Model::named("orders")).build().unwrap().migrate().unwrap();
        roles.execute(
            "CREATE ROLE shop_owner LOGIN; CREATE ROLE shop_reader LOGIN; GRANT USAGE ON SCHEMA public TO shop_reader",
        );
        for grants in [grants, WORKER, OWNER] {
            roles.execute(grants);
        }
        Model::named("orders").create_table(&mut roles.client("owner"));
        let mut owner = roles.client("owner");
        owner.batch_execute(&roles.named("GRANT SELECT, INSERT ON orders TO shop_worker; GRANT SELECT (global_position, seq, aggregate_id, aggregate_version) ON orders TO shop_reader; GRANT SELECT ON SEQUENCE orders_seq_seq TO shop_reader")).unwrap();
        roles
    }

    /// A script with the names of this database's own roles.
    fn named(&self, script: &str) -> String {
        let database = self.database.url().rsplit_once('/').unwrap().1.split('?').next().unwrap();
        script.replace("shop_", &format!("{}_", self.prefix)).replace(":database", &format!("\"{database}\""))
    }

    fn execute(&mut self, script: &str) {
        let script = self.named(script);
        self.admin.batch_execute(&script).unwrap();
    }

    fn url(&self, role: &str) -> String {
        self.database.url().replace("postgres@", &format!("{}_{role}@", self.prefix))
    }

    fn client(&self, role: &str) -> Client {
        Client::connect(&self.url(role), NoTls).unwrap()
    }

    /// A worker as the minimal role.
    fn builder(&self) -> Builder {
        let handled_by = Arc::clone(&self.handled_by);
        let model = Model::named("orders").before(move |tx, _| {
            if tx.is_replay() {
                handled_by.lock().insert(tx.query_one("SELECT current_user::text", &[])?.get(0));
            }
            Ok(())
        });
        builder(&self.url("worker"), "set").projection(model)
    }

    fn owner(&self) -> Database {
        Database::from_url(&self.url("owner")).unwrap()
    }

    /// Who owns the read model, and who may do what with it.
    fn privileges(&mut self) -> Vec<String> {
        let sql = "SELECT concat_ws(' ', relname, relowner::regrole, relacl, (SELECT string_agg(attacl::text, ' ' ORDER BY attnum) FROM pg_attribute
                                    WHERE attrelid = c.oid))
                   FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relname LIKE 'orders%' ORDER BY 1";
        self.admin.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
    }
}

#[test]
fn minimal_worker_role_cannot_rebuild_by_itself() {
    let mut roles = Roles::prepared();
    let worker = roles.builder().build().unwrap().start().unwrap();
    await_running(&[&worker]);
    append_plainly(&mut roles.admin, 100, 10);
    await_exact(&mut roles.admin, "orders");
    for arguments in [json!({"rate": null}), json!({"rate": null, "copy": true})] {
        let why = refused(&mut roles.admin, "orders", "rebuild", &arguments);
        let needed = if arguments["copy"] == true {
            "to replace the content of table public.orders"
        } else {
            "which owns table public.orders"
        };
        for part in [needed, "lacks CREATE on database", "set ORCHESTRATOR_OWNER_URL"] {
            assert!(why.contains(part), "{arguments}: {why}");
        }
    }
    assert_eq!(schemas(&mut roles.admin), [""; 0]);
}

#[test]
fn owner_prepares_and_switches_while_workers_handle() {
    let mut roles = Roles::prepared();
    let worker = roles.builder().owner(roles.owner()).build().unwrap().start().unwrap();
    await_running(&[&worker]);
    append_plainly(&mut roles.admin, 1_000, 10);
    await_exact(&mut roles.admin, "orders");
    let before = roles.privileges();
    assert!(before.iter().any(|privileges| privileges.contains("_reader=")), "{before:?}");
    roles.admin.batch_execute("DELETE FROM orders WHERE seq % 2 = 0").unwrap();
    let id = begin_rebuild(&mut roles.admin, "orders");
    append_plainly(&mut roles.admin, 100, 10);
    let (name, _, error) = outcome(&mut roles.admin, id);
    assert_eq!((name.as_str(), error), ("done", None));
    await_exact(&mut roles.admin, "orders");
    assert_eq!(roles.privileges(), before);
    assert_eq!(*roles.handled_by.lock(), BTreeSet::from([format!("{}_worker", roles.prefix)]));
    for arguments in [json!({"rate": null, "copy": true}), json!({"rate": null, "keep_old": true})] {
        roles.admin.batch_execute("DELETE FROM orders WHERE seq % 2 = 0").unwrap();
        let id = begin_rebuild_with(&mut roles.admin, "orders", &arguments);
        let (name, _, error) = outcome(&mut roles.admin, id);
        assert_eq!((name.as_str(), error), ("done", None), "{arguments}");
        await_exact(&mut roles.admin, "orders");
        assert_eq!(roles.privileges(), before, "{arguments}");
    }
    for command in ["revert", "drop_old"] {
        crate::support::commands::done(&mut roles.admin, "orders", command, &json!({}));
    }
    assert_eq!(schemas(&mut roles.admin), [""; 0]);
}

/// The server shows little of a session to other roles. What it shows has to be enough.
#[test]
fn owner_sees_the_snapshots_of_other_roles() {
    let mut roles = Roles::prepared();
    let worker = roles.builder().owner(roles.owner()).build().unwrap().start().unwrap();
    await_running(&[&worker]);
    append_plainly(&mut roles.admin, 100, 10);
    await_exact(&mut roles.admin, "orders");
    let mut reader = roles.client("reader");
    let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let mut old = reader.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().unwrap();
    old.query_one("SELECT 1", &[]).unwrap();
    let id = begin_rebuild(&mut roles.admin, "orders");
    let named = format!("pid {pid} (user {}_reader", roles.prefix);
    eventually("the reader is named", Duration::from_secs(30), || {
        let row = roles.admin.query_opt("SELECT blocked FROM orchestrator_rebuilds", &[]).unwrap()?;
        row.get::<_, Option<String>>(0).filter(|why| why.contains(&named))
    });
    assert_eq!(old.query("SELECT global_position FROM orders", &[]).unwrap().len(), 100);
    old.commit().unwrap();
    assert_eq!(outcome(&mut roles.admin, id).0, "done");
    await_exact(&mut roles.admin, "orders");
}
