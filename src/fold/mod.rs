//! Folds: a state per key, which the library loads, changes by events and writes.
//!
//! A batch is one round: the states of its keys are read by one statement, its events are applied
//! in order, and the changed states are written by one statement, in the runner's transaction.
//!
//! *Invariant:* no update is lost, whatever the application says about its keys. Each row is
//! written only if its version and its position are those that were read. If keys may come from
//! several aggregates, their rows are locked first, in the order of the keys, so that this never
//! fails. Otherwise states stay in memory from one batch to the next, as long as the worker owns
//! the same checkpoints.

mod column;
mod folded;
mod overtaken;
mod read;
mod round;
mod states;
mod traits;

pub use self::column::Column;
pub(crate) use self::folded::Folded;
pub(crate) use self::overtaken::Overtaken;
pub use self::traits::Fold;
