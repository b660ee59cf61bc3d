//! The dashboard and the rules of `examples/grafana`, on a real Prometheus that scrapes real
//! workers.

use std::collections::BTreeSet;
use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{EventStore, ExpectedVersion, Metrics, MetricsServer};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::commands::{done, give, outcome};
use crate::support::insert::{ONE, insert};
use crate::support::installed::installed;
use crate::support::ledger::{append_plainly, happened, thing};
use crate::support::prometheus::Prometheus;
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::{TestDatabase, database, eventually};

const RULES: &str = include_str!("../../examples/grafana/rules.yml");
const DASHBOARD: &str = include_str!("../../examples/grafana/dashboard.json");
const KEDA: &str = include_str!("../../examples/kubernetes/keda-scaledobject.yaml");
const ADAPTER: &str = include_str!("../../examples/kubernetes/prometheus-adapter-values.yaml");
const SOON: Duration = Duration::from_secs(60);

/// The values that Grafana would put into the expressions.
const VARIABLES: [(&str, &str); 3] = [
    ("$replica_set", "main-projections"),
    ("$projection", "event_type_counts|aggregate_activity"),
    ("$__rate_interval", "10s"),
];

/// The alerts that do not compare a metric which always exists. They look for series that do not
/// exist in a healthy state.
const LOOK_FOR_SERIES: [&str; 2] = ["NoActiveWorkers", "WorkersNotProcessing"];

/// The alert that a machine busy with other tests may cause.
const OF_THE_MACHINE: &str = "HeartbeatsSlow";

#[test]
fn every_expression_of_the_dashboard_and_rules_has_data() {
    let Some(program) = installed(&["prometheus"]) else { return };
    let prometheus = Prometheus::start(&program, RULES);
    let rules = Rules::of(&prometheus);
    let database = database();
    let mut client = database.client();

    let mut stays = start(&database);
    stays.await_processing(1);
    let address = stays.metrics_address();
    let application = Application::start(&database);
    prometheus.scrape(&[&address, &application.address()]);
    application.wait_for_its_append();
    prometheus.await_series("pupsourcing_orchestrator_active_workers == 1");
    append_plainly(&mut client, 500, 50);
    let mut crashes = start(&database);
    stays.await_processing(2);
    prometheus.scrape(&[&address, &application.address(), &crashes.metrics_address()]);
    prometheus.await_series("count(pupsourcing_orchestrator_active_workers == 2) == 2");
    append_plainly(&mut client, 500, 50);
    prometheus.await_series("count(pupsourcing_orchestrator_lag_events == 0) == 4");
    prometheus.await_series("count(pupsourcing_orchestrator_head_blocked_seconds == 0) == 2");
    eventually("nothing is alerted on while all is well", SOON, || rules.wrong(&prometheus).is_empty().then_some(()));

    crashes.signal(Signal::KILL);
    stays.await_processing(1);
    prometheus.await_series("sum(pupsourcing_orchestrator_stale_workers_cleaned_total) == 1");

    let mut locker = database.client();
    let lock = keep_a_handler_waiting(&mut locker, &mut client);
    let mut joins = start(&database);
    prometheus.scrape(&[&address, &application.address(), &joins.metrics_address()]);
    prometheus.await_series(rules.alert("WorkersNotProcessing"));
    lock.rollback().unwrap();
    joins.await_processing(2);

    lose_listeners(&mut client);
    for line in ["connection lost: ", "connection regained: "] {
        stays.await_line(&[line, " connection=listener"]);
    }
    prometheus.await_series("sum(pupsourcing_orchestrator_reconnects_total) >= 2");

    application.wait_for_its_append();
    operate(&prometheus, &rules, &database, &mut client);
    rebuild(&prometheus, &rules, &mut client);

    let mut writer = database.client();
    refuse_a_read_model(&mut client);
    prometheus.await_series("pupsourcing_orchestrator_projection_halted == 1");
    let mut open = writer.transaction().unwrap();
    append_long_ago(&mut open, "elsewhere");
    append_plainly(&mut client, 10, 10);
    prometheus.await_series("pupsourcing_orchestrator_head_blocker_age_seconds > 0");

    let wrong = BTreeSet::from(["ProjectionFailing", "ProjectionHalted", "ProjectionLagging", "WorkerNotReady"]);
    eventually("what is wrong is alerted on, and nothing else", SOON, || {
        (rules.wrong(&prometheus) == wrong).then_some(())
    });
    for (what, expression) in of_the_dashboard().into_iter().chain(rules.figures()) {
        let said = || has_said_something(&prometheus, &expression).then_some(());
        eventually(&format!("{what} has data: {expression}"), SOON, said);
    }

    stays.await_line(&["safe head blocked by an open transaction: "]);
    open.rollback().unwrap();
    stays.await_line(&["safe head moves again: "]);
    for worker in [&mut stays, &mut joins] {
        worker.signal(Signal::TERM);
        assert_eq!(worker.exit_code(), Some(0));
    }
    prometheus.await_series(rules.alert("NoActiveWorkers"));
}

/// An application that waits for what it appends, and serves its metrics.
struct Application<'a> {
    database: &'a TestDatabase,
    store: EventStore,
    server: MetricsServer,
}

impl<'a> Application<'a> {
    fn start(database: &'a TestDatabase) -> Self {
        let metrics = Metrics::new().unwrap();
        let store = EventStore::default().metrics(&metrics);
        let server = MetricsServer::builder(metrics).bind("127.0.0.1:0").unwrap();
        Self { database, store, server }
    }

    fn address(&self) -> String {
        self.server.address().to_string()
    }

    fn wait_for_its_append(&self) {
        let mut client = self.database.client();
        let stream = thing(&Uuid::new_v4().to_string());
        let appended = self.store.append(&mut client, &stream, ExpectedVersion::NoStream, &[happened()]).unwrap();
        self.store.wait_for(&mut client, &["event_type_counts"], &appended, SOON).unwrap();
    }
}

fn start(database: &TestDatabase) -> WorkerProcess {
    WorkerProcess::start(database.url(), &[("HEARTBEAT_INTERVAL", "500ms")])
}

/// Locks a read model, and waits until a worker that has an event for it waits for the lock.
fn keep_a_handler_waiting<'a>(locker: &'a mut Client, client: &mut Client) -> postgres::Transaction<'a> {
    let mut lock = locker.transaction().unwrap();
    lock.execute("LOCK TABLE aggregate_activity IN EXCLUSIVE MODE", &[]).unwrap();
    append_plainly(client, 1, 1);
    let waiting = "SELECT FROM pg_locks WHERE relation = 'aggregate_activity'::regclass AND NOT granted";
    eventually("a handler waits", SOON, || client.query_opt(waiting, &[]).unwrap());
    lock
}

/// An operator pauses a projection, and rewinds it. Its lag is not alerted on, and no autoscaler
/// follows it. Then a command waits, and aggregates are parked.
fn operate(prometheus: &Prometheus, rules: &Rules, database: &TestDatabase, client: &mut Client) {
    let await_wrong = |wrong: &[&str]| {
        let wrong: BTreeSet<&str> = wrong.iter().copied().collect();
        eventually(&format!("{wrong:?} are alerted on"), SOON, || (rules.wrong(prometheus) == wrong).then_some(()));
    };
    await_wrong(&[]);
    done(client, "event_type_counts", "pause", &json!({}));
    append_long_ago(client, "paused");
    prometheus.await_series("max by (projection) (pupsourcing_orchestrator_lag_seconds) > 60");
    await_wrong(&["ProjectionPaused"]);
    await_no_scaling(prometheus);
    done(client, "event_type_counts", "resume", &json!({}));
    await_wrong(&[]);

    // As if it had been far ahead before.
    let highest = "UPDATE orchestrator_checkpoints SET highest = position + $1 WHERE projection = 'event_type_counts'";
    client.execute(highest, &[&1_000_000_i64]).unwrap();
    await_wrong(&["ProjectionRewinding"]);
    client.execute(highest, &[&0_i64]).unwrap();
    await_wrong(&[]);

    let mut locker = database.client();
    let mut lock = locker.transaction().unwrap();
    lock.query("SELECT FROM orchestrator_replica_sets FOR UPDATE", &[]).unwrap();
    let number = give(client, "event_type_counts", "pause", &json!({}));
    await_wrong(&["CommandPending"]);
    lock.rollback().unwrap();
    assert_eq!(outcome(client, number).0, "done");
    done(client, "event_type_counts", "resume", &json!({}));

    let park = "INSERT INTO orchestrator_parked (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id,
                                       event_type, attempts, error)
                SELECT 'event_type_counts', 'c', 'T', n, 1, 1, gen_random_uuid(), 'E', 8, 'no' FROM generate_series(1, 20) AS n";
    client.batch_execute(park).unwrap();
    await_wrong(&["AggregatesParked", "ParkingGrows"]);
    client.batch_execute("DELETE FROM orchestrator_parked").unwrap();
    await_wrong(&[]);
}

/// A read model is rebuilt, and its former table is kept. The rebuild is no lag, and is alerted on
/// while it is kept from its switch.
fn rebuild(prometheus: &Prometheus, rules: &Rules, client: &mut Client) {
    let await_wrong = |wrong: &[&str]| {
        let wrong: BTreeSet<&str> = wrong.iter().copied().collect();
        eventually(&format!("{wrong:?} are alerted on"), SOON, || (rules.wrong(prometheus) == wrong).then_some(()));
    };
    append_plainly(client, 4_000, 50);
    prometheus.await_series("min by (projection) (pupsourcing_orchestrator_lag_events == 0)");
    give(client, "event_type_counts", "rebuild", &json!({"rate": 150, "keep_old": true}));
    prometheus.await_series("min(pupsourcing_orchestrator_rebuild_progress_ratio) > 0");
    await_wrong(&[]);
    await_no_scaling(prometheus);
    done(client, "event_type_counts", "pause", &json!({}));
    await_wrong(&["ProjectionPaused", "RebuildBlocked"]);
    done(client, "event_type_counts", "resume", &json!({}));
    prometheus.await_series("min(pupsourcing_orchestrator_old_tables_age_seconds) > 0");
    await_wrong(&[]);
}

/// Waits until no autoscaler has a reason to add workers. The other projection may be behind for a
/// moment.
fn await_no_scaling(prometheus: &Prometheus) {
    for query in autoscaled() {
        eventually(&format!("nothing is scaled by {query}"), SOON, || {
            let series = prometheus.now(&query);
            let mut values = series.iter().map(|series| series["value"][1].as_str().unwrap());
            (!series.is_empty() && values.all(|value| value == "0")).then_some(())
        });
    }
}

/// The queries that the autoscaling examples follow.
fn autoscaled() -> [String; 2] {
    let selector = "namespace=\"default\",replica_set=\"main-projections\"";
    let query = |file: &str, name: &str, end: &str| {
        let (_, rest) = file.split_once(&format!("{name}: >-\n")).unwrap();
        let query = rest.split(end).next().unwrap();
        // These workers run in no namespace.
        query
            .replace("<<.Series>>", "pupsourcing_orchestrator_lag_events")
            .replace("<<.LabelMatchers>>", "")
            .replace(selector, "")
    };
    [query(KEDA, "query", "threshold:"), query(ADAPTER, "metricsQuery", "\0")]
}

fn lose_listeners(client: &mut Client) {
    // The last statement of a listener, which also measures the lag.
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND (query LIKE 'LISTEN %' OR query LIKE 'SELECT p.name, lag.position%')
                     AND pid <> pg_backend_pid()";
    assert_eq!(client.query_one(sql, &[]).unwrap().get::<_, i64>(0), 2, "each worker has a listener");
}

/// Makes the server refuse the writes of a handler, for an event that is already an hour old.
fn refuse_a_read_model(client: &mut Client) {
    client
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON event_type_counts FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .unwrap();
    append_long_ago(client, "refused");
}

fn append_long_ago(client: &mut impl postgres::GenericClient, aggregate: &str) {
    let columns =
        [("aggregate_type", "'Old'"), ("aggregate_id", "$1::text"), ("created_at", "now() - interval '1 hour'")];
    client.execute(&insert(ONE, &columns), &[&aggregate]).unwrap();
}

/// The rules as Prometheus has read them.
struct Rules(Vec<Value>);

impl Rules {
    fn of(prometheus: &Prometheus) -> Self {
        let rules = prometheus.rules();
        assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
        let (alerts, records): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule["type"] == "alerting");
        assert_eq!(
            (alerts.len(), records.len()),
            (RULES.matches("- alert:").count(), RULES.matches("- record:").count())
        );
        Self(rules)
    }

    fn alerts(&self) -> impl Iterator<Item = (&str, &str)> {
        let alerts = self.0.iter().filter(|rule| rule["type"] == "alerting");
        alerts.map(|rule| (rule["name"].as_str().unwrap(), rule["query"].as_str().unwrap()))
    }

    /// The expression of an alert.
    fn alert(&self, name: &str) -> &str {
        self.alerts().find(|(alert, _)| *alert == name).unwrap().1
    }

    /// The alerts whose expression currently has a result.
    #[track_caller]
    fn wrong(&self, prometheus: &Prometheus) -> BTreeSet<&str> {
        let told = self.alerts().filter(|(name, query)| *name != OF_THE_MACHINE && !prometheus.now(query).is_empty());
        told.map(|(name, _)| name).collect()
    }

    /// The recorded series, and the expressions that the alerts compare with their thresholds.
    fn figures(&self) -> Vec<(String, String)> {
        let records = self.0.iter().filter(|rule| rule["type"] == "recording");
        let records = records.map(|rule| rule["name"].as_str().unwrap()).map(|name| (name.to_owned(), name.to_owned()));
        let compared = self.alerts().filter(|(name, _)| !LOOK_FOR_SERIES.contains(name)).map(|(name, query)| {
            let (figure, _) = query.rsplit_once(" > ").or_else(|| query.rsplit_once(" == ")).unwrap();
            (name.to_owned(), figure.to_owned())
        });
        records.chain(compared).collect()
    }
}

/// The expressions of the panels, and those from which the variables take their values.
fn of_the_dashboard() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((panel["title"].to_string(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(definition) = variable["definition"].as_str() else { continue };
        let asked = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let (series, label) = asked.rsplit_once(", ").unwrap();
        // This has no result unless the series have that label.
        found.push((variable["name"].to_string(), format!("count by ({label}) ({series}) unless count({series})")));
    }
    assert!(found.len() > 30, "{found:?}");
    for (title, expression) in &mut found {
        for (variable, value) in VARIABLES {
            *expression = expression.replace(variable, value);
        }
        assert!(!expression.contains('$'), "{title}: {expression}");
    }
    found
}

/// Whether an expression has had a value since the start. The result of a division by 0 does not
/// count.
#[track_caller]
fn has_said_something(prometheus: &Prometheus, expression: &str) -> bool {
    let series = prometheus.so_far(expression);
    let values = series.iter().flat_map(|series| series["values"].as_array().unwrap());
    values.filter(|value| value[1] != "NaN").count() > 0
}
