//! Projections that do what a test wants, and what a worker says of them.

use postgres::{Client, Transaction};
use pupsourcing_orchestrator::{BoxError, Event, Handle, Names, Projection, Scope, StartAt};

use super::TestDatabase;
use super::ledger::Ledger;

/// What a test does with each event before it goes into the ledger.
pub(crate) type Before = dyn Fn(&mut Transaction<'_>, &Event) -> Result<(), BoxError> + Send + Sync;

/// A ledger whose handler first does something of the test's.
pub(crate) struct Meddled {
    pub(crate) ledger: Ledger,
    pub(crate) before: Box<Before>,
}

/// A ledger whose handler first does this.
pub(crate) fn meddled(
    name: &'static str,
    before: impl Fn(&mut Transaction<'_>, &Event) -> Result<(), BoxError> + Send + Sync + 'static,
) -> Box<dyn Projection> {
    Box::new(Meddled { ledger: Ledger::named(name), before: Box::new(before) })
}

impl Projection for Meddled {
    fn name(&self) -> &str {
        self.ledger.name()
    }

    fn scope(&self) -> Scope {
        self.ledger.scope()
    }

    fn start_at(&self) -> StartAt {
        self.ledger.start_at()
    }

    fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
        (self.before)(tx, event)?;
        self.ledger.handle(tx, event)
    }
}

/// Creates the schema and the ledger's table, and returns a client.
pub(crate) fn prepared(database: &TestDatabase) -> Client {
    let mut client = database.client();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    client
}

/// The value of a metric's series with these labels, the prefix left out; none if there is no such series.
pub(crate) fn metric(handle: &Handle, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let text = prometheus::TextEncoder::new().encode_to_string(&handle.metrics().registry().unwrap().gather()).unwrap();
    let begin = format!("pupsourcing_orchestrator_{name}{{");
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let line = text.lines().find(|line| line.starts_with(&begin) && labels.iter().all(|label| line.contains(label)))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// The value of a counter or gauge of one projection.
pub(crate) fn projection_metric(handle: &Handle, name: &str, projection: &str) -> Option<f64> {
    metric(handle, name, &[("projection", projection)])
}
