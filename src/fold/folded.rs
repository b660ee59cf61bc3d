//! A fold as a projection: executes the statements of its rounds.

use std::collections::HashSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use postgres::types::ToSql;

use super::column::Column;
use super::overtaken::Overtaken;
use super::read::{Read, unreadable};
use super::round::{Changes, Round, Slot};
use super::states::{Kept, Seen, States};
use super::traits::{Fold, table};
use crate::config::Options;
use crate::error::{BoxError, field};
use crate::event::{Event, StreamId};
use crate::projection::{Failed, Handler, Refused, Work, Writes, forward};
use crate::scope::{Scope, StartAt};
use crate::store::folds::{ByIndex, FoldTable, Statements};
use crate::threads::safely;
use crate::tx::Tx;

/// A fold as a projection.
pub(crate) struct Folded<F: Fold> {
    fold: F,
    shape: OnceLock<Shape<F::State>>,
    /// Whether each batch locks its rows, because another worker has changed rows although the fold
    /// says that it cannot.
    locks_all: AtomicBool,
}

/// What the fold says about its table, asked once.
struct Shape<S> {
    table: FoldTable,
    columns: Vec<Column<S>>,
    statements: Statements,
}

impl<F: Fold> Folded<F> {
    pub(crate) fn new(fold: F) -> Self {
        Self { fold, shape: OnceLock::new(), locks_all: AtomicBool::new(false) }
    }

    fn shape(&self) -> &Shape<F::State> {
        self.shape.get_or_init(|| {
            let columns = self.fold.columns();
            let table = table(&self.fold, &columns);
            Shape { statements: Statements::new(&table), table, columns }
        })
    }

    /// Whether rows may be changed by several workers.
    fn is_shared(&self) -> bool {
        self.locks_all.load(Ordering::Relaxed) || self.fold.keys_are_shared()
    }

    /// Locks the rows from now on.
    fn overtaken(&self, projection: &str) -> BoxError {
        let table = self.shape().table.name.clone();
        if !self.locks_all.swap(true, Ordering::Relaxed) {
            safely(|| {
                log::warn!(
                    "fold locks its rows from now on: projection={projection} table={table}",
                    projection = field(&projection),
                    table = field(&table)
                );
            });
        }
        Box::new(Overtaken { table })
    }
}

impl<F: Fold> std::ops::Deref for Folded<F> {
    type Target = F;

    fn deref(&self) -> &F {
        &self.fold
    }
}

impl<F: Fold> Handler for Folded<F> {
    forward!(named);
    forward!(built);

    fn work(&self) -> Work<'_> {
        Work::Writes(self)
    }

    fn fold_table(&self) -> Option<&FoldTable> {
        Some(&self.shape().table)
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        let start = match self.fold.start_at() {
            StartAt::Position(position) => position,
            StartAt::Beginning | StartAt::End => 0,
        };
        if to > start {
            return Err(Box::new(Refused::new(
                "it is a fold, which does not keep former states: rewind it to the beginning, or rebuild it",
            )));
        }
        tx.execute(&self.shape().statements.clear, &[])?;
        Ok(())
    }

    fn forget(&self, tx: &mut Tx<'_>, aggregate: &StreamId) -> Result<(), BoxError> {
        if self.is_shared() {
            return Err(Box::new(Refused::new(
                "its keys_are_shared() says that a row may come from several aggregates, so what one of them has added cannot be \
                 taken off: rebuild the whole read model; or if no two aggregates give the same key, return false and deploy that",
            )));
        }
        tx.execute(&self.shape().statements.delete, &[&aggregate.aggregate_id])?;
        // The rows of its other keys are known when its events are handled.
        tx.memory().get::<States<F::State>>().renewed = Some(HashSet::new());
        Ok(())
    }
}

impl<F: Fold> Writes for Folded<F> {
    fn handle(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, Failed> {
        let together = |error: BoxError| Failed { error, at: None };
        let mut round = Round::new(&self.fold, events)?;
        if round.slots.is_empty() {
            return Ok(events.len());
        }
        let statements = self.shape().statements.of(round.slots.len());
        let locks = self.locks_all.load(Ordering::Relaxed) || (round.has_other_keys && self.fold.keys_are_shared());
        let mut states = std::mem::take(tx.memory().get::<States<F::State>>());
        if locks {
            // What is in memory may be outdated.
            states.clear();
            lock(tx, statements, &round.slots).map_err(together)?;
        }
        self.load(tx, statements, &mut round, &mut states)?;
        if let Some(renewed) = &mut states.renewed {
            for slot in &mut round.slots {
                if renewed.insert(slot.key.clone()) {
                    slot.forget();
                }
            }
        }
        let count = round.apply(&self.fold, events, || tx.is_pause_requested())?;
        let changes = round.changes(&self.shape().columns).map_err(together)?;
        self.write(tx, statements, &changes, locks).map_err(together)?;
        if !locks {
            round.slots.into_iter().map(Slot::into_kept).for_each(|(key, kept)| states.put(key, kept));
        }
        *tx.memory().get() = states;
        Ok(count)
    }
}

/// Locks the rows of all keys.
fn lock<S>(tx: &mut Tx<'_>, statements: &ByIndex, slots: &[Slot<S>]) -> Result<(), BoxError> {
    prepare(tx, statements)?;
    let keys: Vec<&str> = slots.iter().map(|slot| slot.key.as_str()).collect();
    tx.execute(&statements.lock, &[&keys])?;
    Ok(())
}

fn prepare(tx: &mut Tx<'_>, statements: &ByIndex) -> Result<(), BoxError> {
    if let Some(prepare) = statements.prepare {
        tx.query_one(prepare, &[])?;
    }
    Ok(())
}

impl<F: Fold> Folded<F> {
    /// Fills the slots from memory, and those that are not there from the table.
    fn load(
        &self,
        tx: &mut Tx<'_>,
        statements: &ByIndex,
        round: &mut Round<F::State>,
        states: &mut States<F::State>,
    ) -> Result<(), Failed> {
        let mut numbers = Vec::new();
        for (number, slot) in round.slots.iter_mut().enumerate() {
            match states.take(&slot.key) {
                Some(kept) => slot.fill(kept),
                None => numbers.push(number),
            }
        }
        if numbers.is_empty() {
            return Ok(());
        }
        let keys: Vec<&str> =
            numbers.iter().filter_map(|number| Some(round.slots.get(*number)?.key.as_str())).collect();
        let read = |tx: &mut Tx<'_>| -> Result<_, BoxError> { Ok(tx.query(&statements.read, &[&keys])?) };
        let rows = read(tx).map_err(|error| Failed { error, at: None })?;
        for row in rows {
            let (ordinal, version): (i64, i64) = (row.get(0), row.get(2));
            let number = usize::try_from(ordinal - 1).ok().and_then(|index| numbers.get(index)).copied();
            let Some((number, slot)) = number.and_then(|number| Some((number, round.slots.get_mut(number)?))) else {
                continue;
            };
            let seen = Seen { version, position: row.get(3) };
            if version == 0 {
                slot.fill_placeholder(seen);
                continue;
            }
            match row.try_get::<_, Read<F::State>>(1) {
                Ok(Read { state, bytes }) => slot.fill(Kept { state: Some(state), seen: Some(seen), bytes }),
                Err(error) => {
                    let error = unreadable(&self.shape().table.name, &slot.key, &error);
                    return Err(Failed { error: error.into(), at: round.first_event_of(number) });
                }
            }
        }
        Ok(())
    }

    fn write(&self, tx: &mut Tx<'_>, statements: &ByIndex, changes: &Changes, is_locked: bool) -> Result<(), BoxError> {
        let Changes { keys, states, versions, positions, were, values } = changes;
        if keys.is_empty() {
            return Ok(());
        }
        if !is_locked {
            prepare(tx, statements)?;
        }
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![keys, states, versions, positions, &were.0, &were.1];
        params.extend(values.iter().map(|values| values as &(dyn ToSql + Sync)));
        let row = tx.query_one(&statements.write, &params).map_err(|error| self.refused(error, values))?;
        let written: i64 = row.get(0);
        if usize::try_from(written).is_ok_and(|written| written == keys.len()) {
            return Ok(());
        }
        if is_locked {
            let table = &self.shape().table.name;
            return Err(format!(
                "only {written} of {} rows of table {table:?} were written, although they are locked: something else on the table \
                 prevents that, a trigger or a rule: remove it",
                keys.len()
            )
            .into());
        }
        Err(self.overtaken(tx.projection()))
    }

    /// Names the column whose value the server has refused, if it can be told.
    fn refused(&self, error: postgres::Error, values: &[Vec<Option<String>>]) -> BoxError {
        let Some(db) = error.as_db_error().filter(|db| db.code().code().starts_with("22")) else { return error.into() };
        let columns = self.shape().columns.iter().zip(values);
        let refused = columns.flat_map(|(column, values)| values.iter().flatten().map(move |value| (column, value)));
        let found = refused.into_iter().find(|(_, value)| db.message().contains(&format!("\"{value}\"")));
        let Some((column, value)) = found else { return error.into() };
        Box::new(RefusedValue {
            column: column.name().to_owned(),
            fold: self.shape().table.fold.clone(),
            value: value.clone(),
            source: error,
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("column {column:?} of fold {fold:?} cannot take the value {value:?}")]
struct RefusedValue {
    column: String,
    fold: String,
    value: String,
    source: postgres::Error,
}
