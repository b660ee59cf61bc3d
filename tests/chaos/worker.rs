//! The worker of the chaos test: the example `worker` with handlers that fail.
//!
//! | variable | what its handlers do |
//! |---|---|
//! | `ORCHESTRATOR_PANIC_PROBABILITY` | panic with this probability |
//! | `ORCHESTRATOR_ABORT_PROBABILITY` | abort with this probability, if an event is dangerous |
//! | `ORCHESTRATOR_ABORT_ON` | `event_type_counts` aborts the process at each event of this type |
//! | `ORCHESTRATOR_BUSY_WHILE` | wait while this file exists |
//! | `ORCHESTRATOR_BAD_EVENTS` | `true`: fail at each bad event that is not in the table `mended` |
//! | `ORCHESTRATOR_MEDDLES` | `true`: call the function `meddle`, which is slow or fails now and then |
//! | `ORCHESTRATOR_DELIVERIES` | run also two folds, and a reaction that appends to this file |
//! | `ORCHESTRATOR_DELIVERIES_IN_FLIGHT` | the reaction handles so many events at the same time |

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use pupsourcing_orchestrator::{BatchProjection, BoxError, Event, Scope, StartAt, StreamId, Tx, cli};

mod deliveries;
mod faults;
mod folds;
#[allow(dead_code, reason = "it has a main of its own")]
#[path = "../../examples/worker.rs"]
mod worker;

use deliveries::Deliveries;
use faults::{Faults, is_bad, is_dangerous};
use folds::Sums;
use worker::{AggregateActivity, EventTypeCounts, TABLES};

/// Does what the projection does, and panics or aborts the process with these probabilities.
struct Panicking<P> {
    projection: P,
    panics: f64,
    aborts: f64,
    /// The type of the events that end the process.
    aborts_on: Option<String>,
    /// The handler waits while this file exists.
    busy_while: Option<PathBuf>,
    /// The handler fails at bad events until an operator has mended them.
    fails: bool,
    /// How likely the server is to be slow or to fail, for each row that the handler writes.
    meddles: Option<f64>,
    /// How many rows the projection writes for these events.
    rows: fn(&[Event]) -> usize,
}

impl<P> Panicking<P> {
    fn fail_if_bad(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<(), BoxError> {
        let bad: Vec<_> = events.iter().filter(|event| self.fails && is_bad(event)).map(Event::event_id).collect();
        // The nil id stands for every event.
        let sql = "SELECT id FROM unnest($1::uuid[]) AS id
                   WHERE NOT EXISTS (SELECT FROM mended WHERE event_id IN (id, '00000000-0000-0000-0000-000000000000')) LIMIT 1";
        if bad.is_empty() || tx.query_opt(sql, &[&bad])?.is_none() { Ok(()) } else { Err("the event is bad".into()) }
    }

    /// Makes the server slow, or makes it fail, now and then. The handler has done its work, so the
    /// rows are locked. All workers wait for one another's rows of `event_type_counts`. So this
    /// happens as often as rows are written: if it happened for each event, no worker would catch
    /// up with the writers.
    fn meddle_perhaps(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<(), BoxError> {
        if let Some(probability) = self.meddles {
            let rows = i32::try_from((self.rows)(events))?;
            tx.execute("SELECT meddle($1) FROM generate_series(1, $2)", &[&probability, &rows])?;
        }
        Ok(())
    }

    /// Called after the handler has done its work, so that there is something to roll back.
    fn panic_perhaps(&self) {
        assert!(fastrand::f64() >= self.panics, "it panics now and then");
    }

    fn wait_perhaps(&self) {
        let Some(file) = &self.busy_while else { return };
        let tick = crossbeam_channel::tick(Duration::from_millis(10));
        while file.exists() {
            _ = tick.recv();
        }
    }

    fn abort_perhaps(&self, events: &[Event]) {
        let is_poison = |event: &Event| self.aborts_on.as_deref() == Some(event.event_type());
        if events.iter().any(is_poison) || (events.iter().any(is_dangerous) && fastrand::f64() < self.aborts) {
            std::process::abort();
        }
    }
}

/// The neighbour gives the role a timeout that is shorter than the locks and pauses of these
/// handlers. The server would cancel statements that would have succeeded, and each would count as
/// an attempt. A handler that takes longer than its role allows must set its own timeout.
fn allow_time(tx: &mut Tx<'_>) -> Result<(), BoxError> {
    Ok(tx.batch_execute("SET LOCAL statement_timeout = 0")?)
}

impl<P: BatchProjection> BatchProjection for Panicking<P> {
    fn name(&self) -> &str {
        self.projection.name()
    }

    fn scope(&self) -> Scope {
        self.projection.scope()
    }

    fn start_at(&self) -> StartAt {
        self.projection.start_at()
    }

    fn tables(&self) -> &[&str] {
        self.projection.tables()
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        allow_time(tx)?;
        self.wait_perhaps();
        self.fail_if_bad(tx, events)?;
        let handled = self.projection.handle_batch(tx, events)?;
        self.meddle_perhaps(tx, events)?;
        self.abort_perhaps(events);
        self.panic_perhaps();
        Ok(handled)
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        allow_time(tx)?;
        self.projection.reset(tx, to)
    }

    fn forget(&self, tx: &mut Tx<'_>, aggregate: &StreamId) -> Result<(), BoxError> {
        allow_time(tx)?;
        self.projection.forget(tx, aggregate)
    }
}

fn distinct<T: Ord>(keys: impl Iterator<Item = T>) -> usize {
    keys.collect::<BTreeSet<_>>().len()
}

fn types(events: &[Event]) -> usize {
    distinct(events.iter().map(Event::event_type))
}

fn aggregates(events: &[Event]) -> usize {
    distinct(events.iter().map(|event| (event.bounded_context(), event.aggregate_type(), event.aggregate_id())))
}

fn main() -> ExitCode {
    let probability = |variable| std::env::var(variable).map_or(Ok(0.0), |text| text.parse::<f64>());
    let (Ok(panics), Ok(aborts)) =
        (probability("ORCHESTRATOR_PANIC_PROBABILITY"), probability("ORCHESTRATOR_ABORT_PROBABILITY"))
    else {
        return ExitCode::from(2);
    };
    let fails = std::env::var("ORCHESTRATOR_BAD_EVENTS").is_ok_and(|text| text == "true");
    let meddles = std::env::var("ORCHESTRATOR_MEDDLES").is_ok_and(|text| text == "true");
    let aborts_on = std::env::var("ORCHESTRATOR_ABORT_ON").ok();
    let busy_while = std::env::var_os("ORCHESTRATOR_BUSY_WHILE").map(PathBuf::from);
    let deliveries = std::env::var_os("ORCHESTRATOR_DELIVERIES").map(PathBuf::from);
    let in_flight = std::env::var("ORCHESTRATOR_DELIVERIES_IN_FLIGHT").map_or(Ok(1), |text| text.parse());
    let Ok(in_flight) = in_flight else { return ExitCode::from(2) };
    let faults = Faults { panics, aborts, fails, slows: meddles };
    cli::main(|worker| {
        let worker = worker
            .replica_set("chaos")
            .batch_projection(Panicking {
                projection: EventTypeCounts,
                panics,
                aborts,
                aborts_on,
                busy_while: busy_while.clone(),
                fails,
                meddles: meddles.then_some(0.3),
                rows: types,
            })
            .batch_projection(Panicking {
                projection: AggregateActivity,
                panics,
                aborts,
                aborts_on: None,
                busy_while,
                fails,
                meddles: meddles.then_some(0.05),
                rows: aggregates,
            })
            .migration_sql(TABLES);
        match deliveries {
            Some(file) => worker.fold(Sums::of_aggregates(faults)).fold(Sums::shared(faults)).reaction(Deliveries {
                file,
                in_flight,
                faults,
            }),
            None => worker,
        }
    })
}
