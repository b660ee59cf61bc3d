//! A scenario: given these events, what do the read models contain?

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use serde::Serialize;

use super::database::{TestDatabase, database_with_schema};
use super::error::Error;
use crate::blocking::blocking;
use crate::config::Retry;
use crate::database::{Connection, Database};
use crate::error::{BoxError, describe_any};
use crate::event::{NewEvent, StreamId};
use crate::event_store::{EventStore, ExpectedVersion};
use crate::metrics::Metrics;
use crate::orchestrator::Orchestrator;
use crate::projection::{BatchProjection, Batches, Each, Handler, Projection};

/// The replica set of every scenario, each in a database of its own.
const REPLICA_SET: &str = "scenario";

/// How long the projections may take. An error that passes by itself is retried until then.
const PATIENCE: Duration = Duration::from_secs(60);

/// What creates the tables of the read models.
pub(super) enum Setup {
    Statements(String),
    Code(Box<Create>),
}

type Create = dyn Fn(&Database) -> Result<(), BoxError> + Send + Sync;

/// Events, projections, and the read models that they make of them, in a database of its own.
///
/// The projections run as they do in production: in a worker, which starts, processes all events and leaves. Nothing
/// sleeps; after the server has started, a scenario takes about a tenth of a second.
///
/// ```
/// use pupsourcing_orchestrator::testing::Scenario;
/// # use pupsourcing_orchestrator::{BoxError, Event, Projection, StreamId, Tx};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # enum OrderEvent {
/// #     Placed { cents: i64 },
/// # }
/// # struct Orders;
/// # impl Projection for Orders {
/// #     fn name(&self) -> &str { "orders" }
/// #     fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
/// #         let OrderEvent::Placed { cents } = event.decode()?;
/// #         tx.execute("INSERT INTO orders VALUES ($1, $2)", &[&event.aggregate_id(), &cents])?;
/// #         Ok(())
/// #     }
/// # }
///
/// let mut shop = Scenario::new("CREATE TABLE orders (id text PRIMARY KEY, cents bigint NOT NULL)")?.projection(Orders);
/// shop.given(&StreamId::new("shop", "Order", "order-7"), [OrderEvent::Placed { cents: 1_200 }])?;
/// shop.run_to_end()?;
/// let row = shop.client().query_one("SELECT cents FROM orders WHERE id = 'order-7'", &[])?;
/// assert_eq!(row.get::<_, i64>(0), 1_200);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a scenario does nothing until it is run"]
pub struct Scenario {
    pub(super) setup: Setup,
    pub(super) projections: Vec<Arc<dyn Handler>>,
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
        Self::set_up(Setup::Statements(read_models.to_owned()))
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
        Self::set_up(Setup::Code(Box::new(setup)))
    }

    fn set_up(setup: Setup) -> Result<Self, Error> {
        let (database, client) = blocking(|| setup.prepared()).map_err(Error::cannot("start a thread"))??;
        Ok(Self { setup, projections: Vec::new(), client, database })
    }

    /// Adds a projection. At least one is needed, and each name may occur once.
    pub fn projection(mut self, projection: impl Projection + 'static) -> Self {
        self.projections.push(Arc::new(Each(projection)));
        self
    }

    /// Adds a projection that takes many events at once.
    pub fn batch_projection(mut self, projection: impl BatchProjection + 'static) -> Self {
        self.projections.push(Arc::new(Batches(projection)));
        self
    }

    /// Appends typed events to a stream: each is the variant of an enum, see [`NewEvent::encode`].
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append), or an event cannot be encoded.
    pub fn given<E: Serialize>(&mut self, stream: &StreamId, events: impl IntoIterator<Item = E>) -> Result<(), Error> {
        let encode = |event: E| NewEvent::encode(&event).map_err(|error| Error::new(describe_any(&error)));
        let events: Vec<NewEvent> = events.into_iter().map(encode).collect::<Result<_, _>>()?;
        self.append(stream, &events)
    }

    /// Appends events to a stream.
    ///
    /// # Errors
    ///
    /// [`AppendError`](crate::AppendError), for instance because an event id occurs twice.
    pub fn append(&mut self, stream: &StreamId, events: &[NewEvent]) -> Result<(), Error> {
        EventStore::default()
            .append(&mut self.client, stream, ExpectedVersion::Any, events)
            .map(drop)
            .map_err(|error| Error::new(describe_any(&error)))
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
        let builder = self.projections.iter().fold(builder, |builder, projection| builder.handler(projection.clone()));
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

impl Setup {
    /// Creates a database with the tables of events, of the orchestrator and of the read models, on a thread that may
    /// block, and a connection to it.
    pub(super) fn prepared(&self) -> Result<(TestDatabase, Connection), Error> {
        let database = database_with_schema()?;
        let mut client = database.client()?;
        let created = match self {
            Self::Statements(statements) => client.batch_execute(statements).map_err(BoxError::from),
            Self::Code(create) => create(&database.database()),
        };
        created.map_err(|error| {
            Error::new(format!("the tables of the read models cannot be created: {}", describe_any(&*error)))
        })?;
        Ok((database, client))
    }
}
