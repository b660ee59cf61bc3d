//! A scenario: appends events, runs projections, and shows the read models.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use serde::Serialize;

use super::database::{TestDatabase, database_with_schema};
use super::error::Error;
use crate::blocking::blocking;
use crate::config::{OnFailure, Options, Retry};
use crate::database::{Connection, Database};
use crate::error::{BoxError, describe_any};
use crate::event::{NewEvent, StreamId};
use crate::event_store::{EventStore, ExpectedVersion};
use crate::fold::{Fold, Folded};
use crate::metrics::Metrics;
use crate::orchestrator::Orchestrator;
use crate::projection::{BatchProjection, Batches, Each, Effects, Handler, Projection, Reaction, Work};
use crate::scope::{Scope, StartAt};
use crate::store::Names;
use crate::store::folds::{self, FoldTable};
use crate::tx::Tx;

/// The replica set of every scenario. Each scenario has a database of its own.
const REPLICA_SET: &str = "scenario";

/// How long the projections may take. A transient error is retried until then.
const PATIENCE: Duration = Duration::from_secs(60);

/// What creates the tables of the read models.
pub(super) enum Setup {
    Statements(String),
    Code(Box<Create>),
}

type Create = dyn Fn(&Database) -> Result<(), BoxError> + Send + Sync;

/// Events, projections, and the read models that the projections build, in a database of their own.
///
/// The projections run as in production: in a worker, which starts, processes all events and
/// leaves. There are no sleeps; after the server has started, a scenario takes about a tenth of a
/// second.
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
/// let table = "CREATE TABLE orders (id text PRIMARY KEY, cents bigint NOT NULL)";
/// let mut shop = Scenario::new(table)?.projection(Orders);
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
    // Declared before the database, so that it is closed before the database is removed.
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
    /// Creates a database with the tables of events and of the orchestrator, and executes the
    /// statements that create the tables of the read models.
    ///
    /// # Errors
    ///
    /// An error if no server can be started, or if a statement fails.
    pub fn new(read_models: &str) -> Result<Self, Error> {
        Self::set_up(Setup::Statements(read_models.to_owned()))
    }

    /// Like [`new`](Self::new), but calls `setup` to create the tables: for example, with the
    /// application's own migrations. `setup` may be called several times, each time with a database
    /// without these tables, on a thread that may block.
    ///
    /// # Errors
    ///
    /// An error if no server can be started, or if `setup` fails.
    pub fn with_setup(
        setup: impl Fn(&Database) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        Self::set_up(Setup::Code(Box::new(setup)))
    }

    fn set_up(setup: Setup) -> Result<Self, Error> {
        let (database, client) = blocking(|| setup.prepared(&[])).map_err(Error::cannot("start a thread"))??;
        Ok(Self { setup, projections: Vec::new(), client, database })
    }

    /// Adds a projection. At least one is needed, and each name may occur only once.
    pub fn projection(mut self, projection: impl Projection + 'static) -> Self {
        self.projections.push(Arc::new(Each(projection)));
        self
    }

    /// Adds a projection that handles many events at once.
    pub fn batch_projection(mut self, projection: impl BatchProjection + 'static) -> Self {
        self.projections.push(Arc::new(Batches(projection)));
        self
    }

    /// Adds a reaction. It is called for all events of the scenario, as one that was deployed
    /// before the first of them: [`StartAt::End`] is the beginning here.
    ///
    /// [`run_to_end`](Self::run_to_end) calls it as production does, and
    /// [`check_partitioning`](Self::check_partitioning) leaves it out, because it has no read
    /// model.
    pub fn reaction(mut self, reaction: impl Reaction + 'static) -> Self {
        self.projections.push(Arc::new(Effects(reaction)));
        self
    }

    /// Adds a fold. Its table is created when the scenario is run.
    pub fn fold(mut self, fold: impl Fold + 'static) -> Self {
        self.projections.push(Arc::new(Folded::new(fold)));
        self
    }

    /// Appends typed events to a stream. Each event is a variant of an enum: see
    /// [`NewEvent::encode`].
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append); also if an event cannot be encoded.
    pub fn given<E: Serialize>(&mut self, stream: &StreamId, events: impl IntoIterator<Item = E>) -> Result<(), Error> {
        let encode = |event: E| NewEvent::encode(&event).map_err(|error| Error::new(describe_any(&error)));
        let events: Vec<NewEvent> = events.into_iter().map(encode).collect::<Result<_, _>>()?;
        self.append(stream, &events)
    }

    /// Appends events to a stream.
    ///
    /// # Errors
    ///
    /// The text of an [`AppendError`](crate::AppendError), for example because an event id occurs
    /// twice.
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
    /// An error if a handler fails. It has the projection, the event and the handler's error. A
    /// failure is not retried, except a transient one, for up to a minute. No aggregate is parked.
    pub fn run_to_end(&mut self) -> Result<(), Error> {
        let retry = Retry::default().attempts(1);
        let builder = Orchestrator::builder(self.database.database(), REPLICA_SET)
            .retry(retry)
            .registration_wait(Duration::ZERO)
            .metrics(Metrics::disabled()?);
        let projections = self.projections.iter().map(|projection| Arc::new(Halting(projection.clone())));
        let builder = projections.fold(builder, |builder, projection| builder.handler(projection, |options| options));
        let orchestrator = builder.build()?;
        if self.projections.iter().any(|projection| projection.fold_table().is_some()) {
            orchestrator.migrate()?;
        }
        let (go_on, shutdown) = bounded(0);
        let (mut go_on, deadline) = (Some(go_on), Instant::now() + PATIENCE);
        let end = orchestrator.run_to(None, &shutdown, |_| {
            go_on = go_on.take().filter(|_| Instant::now() < deadline);
        });
        if end?.is_complete() {
            return Ok(());
        }
        Err(Error::new(format!("the projections have not processed all events within {PATIENCE:?}")))
    }

    /// A connection to the scenario's database, for queries on the read models.
    pub fn client(&mut self) -> &mut Connection {
        &mut self.client
    }

    /// The scenario's database.
    pub fn database(&self) -> &TestDatabase {
        &self.database
    }
}

/// A projection that halts at a failing event, whatever it does in production: a test should fail.
struct Halting(Arc<dyn Handler>);

impl Handler for Halting {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn scope(&self) -> Scope {
        self.0.scope()
    }

    fn start_at(&self) -> StartAt {
        match (self.0.start_at(), self.0.work()) {
            (StartAt::End, Work::Reacts(_)) => StartAt::Beginning,
            (start, _) => start,
        }
    }

    fn options(&self) -> Options {
        self.0.options().on_failure(OnFailure::Halt)
    }

    fn caught_up(&self, tx: &mut Tx<'_>) -> Result<(), BoxError> {
        self.0.caught_up(tx)
    }

    fn work(&self) -> Work<'_> {
        self.0.work()
    }

    fn fold_table(&self) -> Option<&FoldTable> {
        self.0.fold_table()
    }
}

impl Setup {
    /// Creates a database with the tables of events, of the orchestrator and of the read models, on
    /// a thread that may block, and a connection to it.
    pub(super) fn prepared(&self, projections: &[Arc<dyn Handler>]) -> Result<(TestDatabase, Connection), Error> {
        let database = database_with_schema()?;
        let mut client = database.client()?;
        let tables: Vec<FoldTable> = projections.iter().filter_map(|handler| handler.fold_table().cloned()).collect();
        tables.iter().try_for_each(FoldTable::validate)?;
        folds::migrate(&mut client, &Names::default(), &tables)?;
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
