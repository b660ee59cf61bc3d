//! A scenario: given these events, what do the read models contain?

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::database::{TestDatabase, database_with_schema};
use super::error::Error;
use crate::blocking::blocking;
use crate::config::Retry;
use crate::database::{Connection, Database};
use crate::error::{BoxError, describe_any};
use crate::event::NewEvent;
use crate::event_store::{EventStore, ExpectedVersion};
use crate::metrics::Metrics;
use crate::orchestrator::Orchestrator;
use crate::projection::Projection;

/// The replica set of every scenario, each in a database of its own.
const REPLICA_SET: &str = "scenario";

/// How long the projections may take. An error that passes by itself is retried until then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Creates the tables of the read models.
pub(super) type Setup = Arc<dyn Fn(&Database) -> Result<(), BoxError> + Send + Sync>;

/// Events, projections, and the read models that they make of them, in a database of its own.
///
/// The projections run as they do in production: in a worker, which starts, processes all events and leaves. Nothing
/// sleeps; after the server has started, a scenario takes some tens of milliseconds.
///
/// ```
/// # use postgres::Transaction;
/// # use pupsourcing_orchestrator::{BoxError, Event, NewEvent, Projection};
/// use pupsourcing_orchestrator::testing::Scenario;
/// # struct OrdersPlaced;
/// # impl Projection for OrdersPlaced {
/// #     fn name(&self) -> &str { "orders_placed" }
/// #     fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
/// #         tx.execute("INSERT INTO orders_placed AS o VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET times = o.times + 1",
/// #             &[&event.aggregate_id()])?;
/// #         Ok(())
/// #     }
/// # }
///
/// let mut shop = Scenario::new("CREATE TABLE orders_placed (id text PRIMARY KEY, times bigint NOT NULL)")?
///     .projection(OrdersPlaced);
/// shop.append([NewEvent::new("shop", "Order", "order-7", "OrderPlaced", "{}")])?;
/// shop.run_to_end()?;
/// let row = shop.client().query_one("SELECT times FROM orders_placed WHERE id = 'order-7'", &[])?;
/// assert_eq!(row.get::<_, i64>(0), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a scenario does nothing until it is run"]
pub struct Scenario {
    pub(super) setup: Setup,
    pub(super) projections: Vec<Arc<dyn Projection>>,
    // Before the database, which may be removed from the server.
    client: Connection,
    pub(super) database: TestDatabase,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.projections.iter().map(|projection| projection.name()).collect();
        f.debug_struct("Scenario")
            .field("database", &self.database)
            .field("projections", &names)
            .finish_non_exhaustive()
    }
}

impl Scenario {
    /// Creates a database with the tables of events and of the orchestrator, and executes the statements that create the
    /// tables of the read models.
    ///
    /// # Errors
    ///
    /// No server can be started, or a statement fails.
    pub fn new(read_models: &str) -> Result<Self, Error> {
        let statements = read_models.to_owned();
        Self::with_setup(move |database| Ok(database.connect()?.batch_execute(&statements)?))
    }

    /// Like [`new`](Self::new), where something else creates the tables: the application's own migrations, for instance.
    /// It may be called several times, each time with an empty database, on a thread that may block.
    ///
    /// # Errors
    ///
    /// No server can be started, or `setup` fails.
    pub fn with_setup(
        setup: impl Fn(&Database) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let database = blocking(|| prepared(&setup)).map_err(Error::cannot("start a thread"))??;
        Ok(Self { setup: Arc::new(setup), projections: Vec::new(), client: database.client()?, database })
    }

    /// Adds a projection. At least one is needed, and each name may occur once.
    pub fn projection(mut self, projection: impl Projection + 'static) -> Self {
        self.projections.push(Arc::new(projection));
        self
    }

    /// Appends events, each to the stream of its aggregate.
    ///
    /// # Errors
    ///
    /// [`AppendError`](crate::AppendError), for instance because an event id occurs twice.
    pub fn append(&mut self, events: impl IntoIterator<Item = NewEvent>) -> Result<(), Error> {
        let store = EventStore::default();
        for event in events {
            store
                .append(&mut self.client, ExpectedVersion::Any, &[event])
                .map_err(|error| Error::new(error.to_string()))?;
        }
        Ok(())
    }

    /// Runs the projections until they have processed all events.
    ///
    /// # Errors
    ///
    /// A handler fails: the error names the projection, the event and what the handler said. Nothing is retried, except
    /// what passes by itself, for up to a minute.
    pub fn run_to_end(&mut self) -> Result<(), Error> {
        let retry = Retry::default().attempts(1);
        let builder = Orchestrator::builder(self.database.database(), REPLICA_SET)
            .retry(retry)
            .registration_wait(Duration::ZERO)
            .metrics(Metrics::disabled()?);
        let builder =
            self.projections.iter().fold(builder, |builder, projection| builder.shared_projection(projection.clone()));
        let (go_on, shutdown) = bounded(0);
        let (mut go_on, deadline) = (Some(go_on), Instant::now() + PATIENCE);
        let end = builder.build()?.run_to(None, &shutdown, |_| {
            go_on = go_on.take().filter(|_| Instant::now() < deadline);
        });
        if end?.is_complete() {
            return Ok(());
        }
        Err(Error::new(format!("the projections have not processed all events within {PATIENCE:?}")))
    }

    /// A connection to the scenario's database, on which to query the read models.
    pub fn client(&mut self) -> &mut Connection {
        &mut self.client
    }

    /// The scenario's database.
    pub fn database(&self) -> &TestDatabase {
        &self.database
    }
}

/// Creates a database with the tables of events, of the orchestrator and of the read models, on a thread that may block.
pub(super) fn prepared(setup: &impl Fn(&Database) -> Result<(), BoxError>) -> Result<TestDatabase, Error> {
    let created = database_with_schema()?;
    setup(&created.database()).map_err(|error| {
        Error::new(format!("the tables of the read models cannot be created: {}", describe_any(&*error)))
    })?;
    Ok(created)
}
