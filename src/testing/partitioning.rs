//! Checks that a read model does not depend on how its events are distributed.

use super::error::Error;
use super::rehearsal::{Course, Order, Stage};
use super::rows::Tables;
use super::scenario::Scenario;
use crate::blocking::blocking;

/// The sizes of batches: one event, an odd number, and as many events as a worker handles in one
/// batch.
const SIZES: [usize; 3] = [1, 3, 2_000];

/// The numbers of partitions that are compared with a single one.
const PARTITIONS: [usize; 3] = [1, 2, 5];

/// A check of a scenario's projections, which [`Scenario::check_partitioning`] returns.
#[derive(Debug)]
#[must_use = "nothing is checked until it is run"]
pub struct PartitioningCheck<'a> {
    scenario: &'a Scenario,
    tables: Tables,
    seed: u64,
}

impl Scenario {
    /// Returns a check that the read models do not depend on how the events are distributed.
    ///
    /// Only the events of one aggregate arrive in order. Events of different aggregates may be in
    /// different partitions, and so arrive in any order. A batch may have any size, and it may be
    /// rolled back and handled again. A projection that relies on anything else works in a test
    /// with one worker, and fails in production.
    ///
    /// ```
    /// # use pupsourcing_orchestrator::{BoxError, Event, NewEvent, Projection, StreamId, Tx};
    /// use pupsourcing_orchestrator::testing::Scenario;
    ///
    /// /// Wrong: all orders write the same row.
    /// struct LastOrder;
    ///
    /// impl Projection for LastOrder {
    ///     fn name(&self) -> &str {
    ///         "last_order"
    ///     }
    ///
    ///     fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
    ///         tx.execute("UPDATE last_order SET id = $1", &[&event.aggregate_id()])?;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let table = "CREATE TABLE last_order (id text); INSERT INTO last_order VALUES (NULL)";
    /// let mut shop = Scenario::new(table)?.projection(LastOrder);
    /// for id in ["order-1", "order-2"] {
    ///     shop.append(&StreamId::new("shop", "Order", id), &[NewEvent::new("Placed", "{}")])?;
    /// }
    /// let error = shop.check_partitioning().tables(["last_order"]).run().unwrap_err();
    /// assert!(error.to_string().contains(r#"{"id": "order-1"}"#), "{error}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn check_partitioning(&self) -> PartitioningCheck<'_> {
        PartitioningCheck { scenario: self, tables: Tables::default(), seed: 0 }
    }
}

impl PartitioningCheck<'_> {
    /// Adds tables of the read models, which are compared. At least one is needed.
    pub fn tables(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tables.names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Adds columns that may differ, in any of the tables: for example a time of writing, or a
    /// number from a sequence. Defaults to none.
    pub fn ignoring(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tables.ignored.extend(columns.into_iter().map(Into::into));
        self
    }

    /// Sets the seed, which determines the order in which the partitions take turns, and which
    /// batches are rolled back. The same seed gives the same order. Defaults to 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Lets the projections handle the scenario's events in separate databases: with 1, 2 and 5
    /// partitions, in batches of one, three and all events, one partition after the other or in
    /// turns, with batches that are rolled back and handled again. Compares the tables with those
    /// that one partition writes when it handles all events in order.
    ///
    /// The scenario's own database does not change. The projections are called on one thread.
    ///
    /// # Errors
    ///
    /// An error if a table differs, which names the first row; if a handler fails, which names the
    /// event; or if nothing can be compared, because there are no tables or one of them is empty.
    pub fn run(self) -> Result<(), Error> {
        if self.tables.names.is_empty() {
            return Err(Error::new("nothing is compared: name the tables of the read models with tables()"));
        }
        let Scenario { setup, projections, database, .. } = self.scenario;
        blocking(|| {
            // The original is copied, so no session may be connected to it.
            let (original, _) = setup.prepared(projections)?;
            let stage = Stage::new(original, database, projections)?;
            let expected = stage.play(Course::REFERENCE, &self.tables)?;
            if let Some(table) = expected.first_empty() {
                let problem = "is empty when all events are handled, so nothing is compared";
                return Err(Error::new(format!("table {table} {problem}")));
            }
            courses(self.seed).try_for_each(|course| {
                let found = stage.play(course, &self.tables)?;
                expected.compare(&found).map_err(|difference| Error::new(format!("{course}: {difference}")))
            })
        })
        .map_err(Error::cannot("start a thread"))?
    }
}

/// Returns, for each number of partitions, one order for each size of batches.
fn courses(seed: u64) -> impl Iterator<Item = Course> {
    let orders = [Order::InTurns, Order::LastFirst, Order::FirstFirst];
    PARTITIONS.into_iter().flat_map(move |partitions| {
        let sizes = SIZES.into_iter().zip(orders);
        sizes.map(move |(batch, order)| Course { partitions, batch, order, rolls_back: true, seed })
    })
}
