//! The trait that a user of the library implements for a fold.

use std::sync::Arc;

use postgres::GenericClient as _;
use postgres::types::Type;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::column::Column;
use super::read::{Read, unreadable};
use crate::blocking::blocking;
use crate::config::Options;
use crate::database::AsClient;
use crate::error::{BoxError, Error};
use crate::event::Event;
use crate::projection::{declare, forward};
use crate::scope::{Scope, StartAt};
use crate::store::folds::{FoldTable, read_one};
use crate::tx::Tx;

/// Builds a read model from a state per key. The application says to which key an event belongs,
/// and what it makes of the state. The library loads the states that a batch needs with one
/// statement, applies the events, and writes the states with one statement. So it is as fast as a
/// hand-written [`BatchProjection`](crate::BatchProjection). The same guarantees hold, and errors
/// have the same effects: see [`Projection`](crate::Projection). [The guide](crate::guide::folds)
/// has more.
///
/// ```
/// use pupsourcing_orchestrator::{BoxError, Column, Event, Fold};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// enum OrderEvent {
///     Placed { customer: String, cents: i64 },
///     ItemAdded { cents: i64 },
///     Withdrawn,
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct Summary {
///     customer: String,
///     total_cents: i64,
/// }
///
/// struct OrderSummary;
///
/// impl Fold for OrderSummary {
///     type State = Summary;
///
///     fn name(&self) -> &str {
///         "order_summary"
///     }
///
///     fn apply(
///         &self,
///         state: Option<Summary>,
///         event: &Event,
///     ) -> Result<Option<Summary>, BoxError> {
///         Ok(match (event.decode()?, state) {
///             (OrderEvent::Placed { customer, cents }, _) => {
///                 Some(Summary { customer, total_cents: cents })
///             }
///             (OrderEvent::ItemAdded { cents }, Some(order)) => {
///                 Some(Summary { total_cents: order.total_cents + cents, ..order })
///             }
///             (OrderEvent::Withdrawn, _) => None,
///             (OrderEvent::ItemAdded { .. }, None) => return Err("no such order".into()),
///         })
///     }
///
///     fn columns(&self) -> Vec<Column<Summary>> {
///         vec![Column::new("total_cents", "bigint", |order: &Summary| order.total_cents)]
///     }
/// }
/// # #[cfg(feature = "testing")]
/// # {
/// # use pupsourcing_orchestrator::{StreamId, testing::Scenario};
/// let mut shop = Scenario::new("")?.fold(OrderSummary);
/// let placed = OrderEvent::Placed { customer: "ada".into(), cents: 1_200 };
/// let added = OrderEvent::ItemAdded { cents: 300 };
/// shop.given(&StreamId::new("shop", "Order", "order-7"), [placed, added])?;
/// shop.run_to_end()?;
/// let order = OrderSummary.get(shop.client(), "order-7")?.ok_or("no such order")?;
/// assert_eq!((order.customer.as_str(), order.total_cents), ("ada", 1_500));
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # The table
///
/// [`migrate`](crate::Orchestrator::migrate) creates the table in the first schema of the
/// application's search path, and adds extracted columns that it lacks. Readers may use all of its
/// columns:
///
/// | column | |
/// |---|---|
/// | `key` | `text`, the primary key |
/// | `state` | `jsonb`, the state as serde writes it |
/// | `version` | `bigint`, how many events were applied since the row was created |
/// | `position` | `bigint`, the highest global position of an event that was applied |
/// | `updated_at` | `timestamptz`, when the transaction began that wrote the row last |
/// | others | the values of [`columns`](Self::columns) |
///
/// Indexes may be added. Only the fold may write the table.
///
/// # Memory
///
/// States whose rows only one worker writes stay in its memory from one batch to the next: those
/// that were used last, up to 65,536 keys and 16 MiB of JSON in each lane. So a state must survive
/// the way to JSON and back: what serde leaves out is lost whenever the state is read from the
/// table. [`check_partitioning`](crate::testing::Scenario::check_partitioning) finds that, because
/// it reads each state again.
pub trait Fold: Send + Sync {
    /// The state of one key.
    type State: Serialize + DeserializeOwned + Send + 'static;

    declare!(named);
    declare!(starting at the beginning);
    declare!(built);

    /// The name of the table, without a schema: letters, digits, `_`, `-` and `$`, at most 63
    /// bytes. Defaults to the name of the fold.
    fn table(&self) -> &str {
        self.name()
    }

    /// The key to whose state the event belongs, or `None` if the fold does not concern itself with
    /// it. The same event must always give the same key. Defaults to the id of the aggregate.
    fn key(&self, event: &Event) -> Option<String> {
        Some(event.aggregate_id().to_owned())
    }

    /// Whether a key may come from events of several aggregates: per customer, per day. Only one
    /// worker at a time handles the events of one aggregate, but several workers may handle events
    /// of one key.
    ///
    /// If it returns true, and a batch has a key that is not the id of its aggregate, the rows of
    /// the whole batch are locked first, in the order of their keys. That costs a round trip; other
    /// workers wait for these rows until the batch is committed; and the states of the batch do not
    /// stay in memory. The order in which `apply` gets events of different aggregates is not
    /// determined.
    ///
    /// Return false if no two aggregates give the same key. Then nothing is locked, states stay in
    /// memory, and the rows of one aggregate can be
    /// [rebuilt](crate::guide::failures) by `rebuild_aggregate`. If two aggregates give the same
    /// key nevertheless, no update is lost: the worker finds that a row is not as it was read,
    /// handles the batch again, and locks its rows from then on. The log says so.
    ///
    /// Defaults to true.
    fn keys_are_shared(&self) -> bool {
        true
    }

    /// Applies an event to the state of its key, and returns the new state. `None` means that the
    /// key has no state: it has no row before its first event, and none after this returns `None`.
    ///
    /// An error or a panic is the failure of this event. The state may depend on nothing but the
    /// former state and the event.
    fn apply(&self, state: Option<Self::State>, event: &Event) -> Result<Option<Self::State>, BoxError>;

    /// The values of a state that have columns of their own, for indexes and joins. A column that
    /// is added later is NULL until the next event of its key: raise [`version`](Self::version) to
    /// fill it in all rows. Defaults to none.
    fn columns(&self) -> Vec<Column<Self::State>> {
        Vec::new()
    }

    /// Reads the state of a key, as it is committed.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] if the statement fails; [`Error::Schema`] if the state in the table is
    /// not a [`State`](Self::State).
    fn get<C: AsClient>(&self, client: &mut C, key: &str) -> Result<Option<Self::State>, Error>
    where
        Self: Sized,
    {
        let table = table(self, &[]);
        let client = client.as_client();
        let row = blocking(|| client.query_typed_opt(&read_one(&table), &[(&key, Type::TEXT)]))
            .map_err(|source| Error::Spawn { thread: "pup-blocking".to_owned(), source })?
            .map_err(Error::database("reading the state of a key"))?;
        row.map(|row| row.try_get::<_, Read<Self::State>>(0).map(|read| read.state))
            .transpose()
            .map_err(|error| Error::Schema { problem: unreadable(&table.name, key, &error) })
    }

    /// The SQL that creates the table and adds the extracted columns that it lacks, for a tool that
    /// migrates: an alternative to [`migrate`](crate::Orchestrator::migrate). It may be executed
    /// each time.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if a name or a type is not possible.
    fn table_sql(&self) -> Result<String, Error>
    where
        Self: Sized,
    {
        let table = table(self, &self.columns());
        table.validate()?;
        Ok(table.sql())
    }
}

/// The table of a fold.
pub(super) fn table<F: Fold>(fold: &F, columns: &[Column<F::State>]) -> FoldTable {
    FoldTable {
        fold: fold.name().to_owned(),
        name: fold.table().to_owned(),
        columns: columns.iter().map(Column::form).collect(),
    }
}

/// Implements what a fold says of itself by asking the value that `self` dereferences to.
macro_rules! forward_fold {
    () => {
        type State = F::State;

        forward!(named);
        forward!(built);

        fn table(&self) -> &str {
            (**self).table()
        }

        fn key(&self, event: &Event) -> Option<String> {
            (**self).key(event)
        }

        fn keys_are_shared(&self) -> bool {
            (**self).keys_are_shared()
        }

        fn apply(&self, state: Option<F::State>, event: &Event) -> Result<Option<F::State>, BoxError> {
            (**self).apply(state, event)
        }

        fn columns(&self) -> Vec<Column<F::State>> {
            (**self).columns()
        }
    };
}

impl<F: Fold + ?Sized> Fold for Arc<F> {
    forward_fold!();
}

impl<F: Fold + ?Sized> Fold for Box<F> {
    forward_fold!();
}
