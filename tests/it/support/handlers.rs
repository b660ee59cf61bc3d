//! Projections whose handlers run code of a test.

use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Event, Names, Projection, Scope, StartAt, Tx};

use super::TestDatabase;
use super::ledger::Ledger;

/// What a test does with each event before it goes into the ledger.
pub(crate) type Before = dyn Fn(&mut Tx<'_>, &Event) -> Result<(), BoxError> + Send + Sync;

/// A ledger whose handler first runs code of the test.
pub(crate) struct Meddled {
    pub(crate) ledger: Ledger,
    pub(crate) before: Box<Before>,
}

/// A ledger whose handler first calls this function.
pub(crate) fn meddled(
    name: &'static str,
    before: impl Fn(&mut Tx<'_>, &Event) -> Result<(), BoxError> + Send + Sync + 'static,
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

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        (self.before)(tx, event)?;
        self.ledger.handle(tx, event)
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        self.ledger.reset(tx, to)
    }
}

/// Creates the schema and the ledger's table, and returns a client.
pub(crate) fn prepared(database: &TestDatabase) -> Client {
    let mut client = database.client();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    client
}
