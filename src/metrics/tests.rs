use std::collections::{BTreeMap, BTreeSet};

use prometheus::IntGauge;

use super::family::{Declared, Kind, PREFIX};
use super::*;
use crate::documented::assert_table;

type Named = BTreeMap<String, (String, BTreeSet<String>)>;

/// Returns type and labels by name, without the prefix, as the rendered text shows them.
fn published(text: &str) -> Named {
    let mut named = Named::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            named.insert(name.strip_prefix(PREFIX).unwrap().to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let (name, labels) = line.split_once('{').unwrap();
            let name = name.strip_prefix(PREFIX).unwrap();
            let family = named.keys().find(|family| {
                let of_histogram = ["_bucket", "_sum", "_count"].map(|end| format!("{family}{end}"));
                name == **family || of_histogram.iter().any(|series| series == name)
            });
            let family = family.unwrap().clone();
            let labels = labels.split_once('}').unwrap().0.split(',').map(|pair| pair.split_once('=').unwrap().0);
            named.get_mut(&family).unwrap().1.extend(labels.filter(|label| *label != "le").map(str::to_owned));
        }
    }
    named
}

fn declared<T>(read: impl Fn(&Declared) -> T) -> Vec<T> {
    let metrics = Metrics::disabled().unwrap();
    metrics.inner.families.all().into_iter().map(|family| read(family.declared())).collect()
}

/// Creates metrics that each have one series.
fn shown() -> Metrics {
    let metrics = Metrics::new().unwrap();
    metrics.inner.families.all().into_iter().for_each(|family| family.show("main"));
    metrics
}

fn kind(of: &Declared) -> &'static str {
    match of.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

#[test]
fn the_table_of_metrics_is_as_declared() {
    let rows = declared(|of| {
        let labels: Vec<String> = of.labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{}` | {} | {} | {} |\n", of.name, kind(of), labels.join(", "), of.help)
    });
    let table = format!("| name | type | labels | meaning |\n|---|---|---|---|\n{}", rows.concat());
    assert_table("src/metrics/metrics.md", "", &table);
}

fn touch_everything(
    metrics: &Metrics,
) -> (ReplicaSetMetrics, ProjectionMetrics, WorkerMetrics, WorkerProjectionMetrics) {
    let set = metrics.for_replica_set("main", "here").unwrap();
    set.active_workers.set(3);
    set.partitions.set(3);
    set.safe_head.set(41);
    set.head_blocked.set(0.5);
    set.head_blocker_age.set(2.0);
    set.set_lags([Lag { projection: "orders", position: 36, events: 5, seconds: 0.25 }].into_iter());
    set.reconnects("listener").inc();
    set.coordination_duration.observe(0.02);
    let projection = set.projection("orders");
    let worker = set.worker("w-1");
    worker.set_state("pending");
    worker.set_state("running");
    worker.set_not_ready(Some("cannot_read"));
    worker.set_not_ready(Some("halted"));
    worker.set_pool(4, 3, 1);
    let own = worker.projection("orders");
    own.position.set(36);
    (set, projection, worker, own)
}

#[test]
fn names_types_and_labels_are_the_published_ones() {
    let published = published(&shown().render().unwrap());
    let labels = |of: &Declared| of.labels.iter().map(|&label| label.to_owned()).collect();
    let declared = declared(|of| (of.name.to_owned(), (kind(of).to_owned(), labels(of))));
    assert_eq!(published, declared.into_iter().collect());

    let fixed = [
        ("generations_total", "counter", "replica_set"),
        ("workers_registered_total", "counter", "replica_set"),
        ("partition_assignments_total", "counter", "replica_set"),
        ("reconfiguration_total", "counter", "replica_set"),
        ("stale_workers_cleaned_total", "counter", "replica_set"),
        ("events_processed_total", "counter", "projection replica_set"),
        ("projection_errors_total", "counter", "projection replica_set"),
        ("active_workers", "gauge", "replica_set"),
        ("current_generation_partitions", "gauge", "replica_set"),
        ("worker_state", "gauge", "replica_set state worker_id"),
        ("coordination_duration_seconds", "histogram", "replica_set"),
        ("event_processing_duration_seconds", "histogram", "projection replica_set"),
        ("heartbeat_latency_seconds", "histogram", "replica_set"),
    ];
    for (name, kind, labels) in fixed {
        let labels = labels.split(' ').map(str::to_owned).collect();
        assert_eq!(published[name], (kind.to_owned(), labels), "{name}");
    }
}

#[test]
fn values_stand_beside_their_labels() {
    let metrics = Metrics::new().unwrap();
    let _held = touch_everything(&metrics);
    let text = metrics.render().unwrap();
    for series in [
        "head_blocker_age_seconds{replica_set=\"main\"} 2",
        "reconnects_total{connection=\"listener\",replica_set=\"main\"} 1",
        "lag_seconds{projection=\"orders\",replica_set=\"main\"} 0.25",
        "pool_connections{replica_set=\"main\",state=\"idle\",worker_id=\"w-1\"} 1",
        "pool_connections{replica_set=\"main\",state=\"in_use\",worker_id=\"w-1\"} 2",
        "projection_position{projection=\"orders\",replica_set=\"main\",worker_id=\"w-1\"} 36",
        "projection_halted{projection=\"orders\",replica_set=\"main\",worker_id=\"w-1\"} 0",
    ] {
        assert!(text.contains(&format!("\n{PREFIX}{series}\n")), "{series} in:\n{text}");
    }
}

#[test]
fn every_metric_has_a_help_text() {
    let text = shown().render().unwrap();
    let helps = text.lines().filter(|line| line.starts_with("# HELP "));
    assert!(helps.clone().all(|help| help.ends_with('.')), "{text}");
    assert_eq!(helps.count(), declared(|_| ()).len());
}

#[test]
fn a_workers_state_is_one_series_and_so_is_its_reason() {
    let metrics = Metrics::new().unwrap();
    let (_set, _projection, worker, _own) = touch_everything(&metrics);
    let shown = |name: &str| -> Vec<String> {
        let text = metrics.render().unwrap();
        text.lines().filter(|line| line.contains(&format!("{name}{{"))).map(str::to_owned).collect()
    };
    let state = "pupsourcing_orchestrator_worker_state{replica_set=\"main\",state=\"running\",worker_id=\"w-1\"} 1";
    assert_eq!(shown("worker_state"), [state]);
    let reason = "pupsourcing_orchestrator_not_ready{reason=\"halted\",replica_set=\"main\",worker_id=\"w-1\"} 1";
    assert_eq!(shown("not_ready"), [reason]);
    worker.set_not_ready(None);
    assert!(shown("not_ready").is_empty());
}

#[test]
fn a_workers_series_go_with_its_last_handle() {
    let metrics = Metrics::new().unwrap();
    let (set, _projection, worker, own) = touch_everything(&metrics);
    let other = set.worker("w-2");
    other.set_state("ready");
    drop(worker);
    assert!(metrics.render().unwrap().contains("w-1"), "a runner may still report");
    drop(own);
    let text = metrics.render().unwrap();
    assert!(!text.contains("w-1"), "{text}");
    assert!(text.contains("worker_state{replica_set=\"main\",state=\"ready\",worker_id=\"w-2\"} 1"), "{text}");
}

#[test]
fn gauges_go_with_the_last_reporter_and_counters_stay() {
    let metrics = Metrics::new().unwrap();
    let first = touch_everything(&metrics);
    let second = metrics.for_replica_set("main", "here").unwrap();
    first.1.events_processed.inc_by(5);
    drop(first);
    assert!(metrics.render().unwrap().contains("lag_events{"));
    drop(second);
    let text = metrics.render().unwrap();
    assert!(published(&text).values().all(|(kind, _)| kind != "gauge"), "{text}");
    assert!(text.contains("events_processed_total{projection=\"orders\",replica_set=\"main\"} 5"), "{text}");

    let _again = touch_everything(&metrics);
    assert!(metrics.render().unwrap().contains("lag_events{projection=\"orders\",replica_set=\"main\"} 5"));
}

#[test]
fn gauges_have_no_series_before_their_first_value() {
    let metrics = Metrics::new().unwrap();
    let set = metrics.for_replica_set("main", "here").unwrap();
    let _projection = set.projection("orders");
    let text = metrics.render().unwrap();
    assert!(!text.contains("lag_") && !text.contains("position"), "{text}");
    assert!(text.contains("retries_total{projection=\"orders\",replica_set=\"main\"} 0"), "{text}");
}

#[test]
fn two_orchestrators_share_one_set_of_metrics() {
    let metrics = Metrics::new().unwrap();
    let (here, there) =
        (metrics.for_replica_set("main", "here").unwrap(), metrics.clone().for_replica_set("main", "here").unwrap());
    here.generations.inc();
    there.generations.inc();
    metrics.for_replica_set("other", "here").unwrap().generations.inc();
    let text = metrics.render().unwrap();
    assert!(text.contains("generations_total{replica_set=\"main\"} 2"), "{text}");
    assert!(text.contains("generations_total{replica_set=\"other\"} 1"), "{text}");
}

#[test]
fn label_values_that_run_together_alike_stay_apart() {
    let metrics = Metrics::new().unwrap();
    metrics.for_replica_set("a", "here").unwrap().projection("bc").events_processed.inc_by(1);
    metrics.for_replica_set("ab", "here").unwrap().projection("c").events_processed.inc_by(2);
    let text = metrics.render().unwrap();
    assert!(text.contains("events_processed_total{projection=\"bc\",replica_set=\"a\"} 1"), "{text}");
    assert!(text.contains("events_processed_total{projection=\"c\",replica_set=\"ab\"} 2"), "{text}");
}

#[test]
fn lags_that_are_not_measured_any_more_are_not_shown() {
    let metrics = Metrics::new().unwrap();
    let (set, other) =
        (metrics.for_replica_set("main", "here").unwrap(), metrics.for_replica_set("other", "here").unwrap());
    let lag = |projection| Lag { projection, position: 3, events: 5, seconds: 0.5 };
    set.set_lags(["kept", "a \"quoted\"\nname\\"].map(lag).into_iter());
    other.set_lags(["theirs"].map(lag).into_iter());
    let escaped = r#"lag_events{projection="a \"quoted\"\nname\\",replica_set="main"} 5"#;
    assert!(metrics.render().unwrap().contains(escaped));

    set.set_lags(["kept"].map(lag).into_iter());
    let text = metrics.render().unwrap();
    for name in ["lag_events", "lag_seconds", "checkpoint_position"] {
        let of = |line: &&str| line.contains(&format!("{PREFIX}{name}{{"));
        let series: Vec<&str> = text.lines().filter(of).collect();
        assert!(
            matches!(series[..], [kept, theirs] if kept.contains("kept") && theirs.contains("theirs")),
            "{series:?}"
        );
    }
}

#[test]
fn a_reading_is_shown_until_it_is_cleared() {
    let metrics = Metrics::new().unwrap();
    let (_set, _projection, _worker, own) = touch_everything(&metrics);
    let is_shown = || metrics.render().unwrap().contains("projection_position{");
    assert!(is_shown());
    own.position.clear();
    assert!(!is_shown());
    own.position.set(37);
    assert!(is_shown());
}

#[test]
fn registry_refuses_a_second_set_of_metrics_unchanged() {
    let registry = Registry::new();
    let first = Metrics::in_registry(&registry).unwrap();
    let error = Metrics::in_registry(&registry).unwrap_err().to_string();
    assert!(error.contains("pupsourcing_orchestrator_generations_total") && error.contains("clone"), "{error}");
    first.for_replica_set("main", "here").unwrap().generations.inc();
    assert_eq!(registry.gather().iter().filter(|family| family.name().ends_with("generations_total")).count(), 1);

    // One of the application's own metrics has a name late in the list. The names before it are
    // unregistered again.
    let registry = Registry::new();
    let own = IntGauge::new(format!("{PREFIX}pool_size"), "The application's own.").unwrap();
    registry.register(Box::new(own)).unwrap();
    assert!(matches!(Metrics::in_registry(&registry), Err(Error::Metrics { .. })));
    let generations = &Metrics::disabled().unwrap().inner.families.generations;
    registry.register(Box::new(generations.clone())).unwrap();
    assert_eq!(registry.gather().len(), 1, "the application's own");
}

#[test]
fn registry_takes_other_metrics_when_the_first_are_gone() {
    let registry = Registry::new();
    let first = Metrics::in_registry(&registry).unwrap();
    let held = touch_everything(&first);
    drop(first);
    assert!(Metrics::in_registry(&registry).is_err(), "a worker still reports to the first");
    drop(held);
    assert_eq!(registry.gather().len(), 0);
    let second = Metrics::in_registry(&registry).unwrap();
    let _held = touch_everything(&second);
    assert!(registry.gather().len() > 10);
}

#[test]
fn registry_whose_labels_would_occur_twice_is_refused() {
    for (label, is_refused) in [("replica_set", true), ("worker_id", true), ("le", true), ("service", false)] {
        let labels = [(label.to_owned(), "x".to_owned())].into();
        let registry = Registry::new_custom(Some("app".into()), Some(labels)).unwrap();
        let made = Metrics::in_registry(&registry);
        assert_eq!(made.is_err(), is_refused, "{label}");
        if let Err(error) = made {
            assert!(error.to_string().contains(&format!("common label {label:?}")), "{error}");
        }
        assert_eq!(registry.gather().len(), 0, "nothing stays there");
    }
}

#[test]
fn replica_sets_of_one_name_share_no_series_across_databases() {
    let metrics = Metrics::new().unwrap();
    let here = metrics.for_replica_set("main", "here").unwrap();
    let again = metrics.for_replica_set("main", "here").unwrap();
    let _other = metrics.for_replica_set("other", "there").unwrap();
    let error = metrics.for_replica_set("main", "there").unwrap_err().to_string();
    for part in ["\"main\" of here", "this one is of there", "of its own"] {
        assert!(error.contains(part), "{error}");
    }
    drop((here, again));
    metrics.for_replica_set("main", "there").unwrap();
}

#[test]
fn disabled_metrics_are_counted_nowhere_visible() {
    let metrics = Metrics::disabled().unwrap();
    let _held = touch_everything(&metrics);
    assert!(metrics.registry().is_none());
    assert_eq!(metrics.render().unwrap(), "");
}
