//! All SQL. A function takes a client or a transaction, is named by what it does, and has one query
//! where possible. [`template`] fills in the names of the tables, [`key`] defines an event's key.
//!
//! Statements that run rarely are sent as `query_typed`: one round trip, no named prepared
//! statement, so that they also work behind a pooler in transaction mode. Statements that run for
//! each batch are [`prepared`] once per connection.

mod ages;
pub(crate) mod arrival;
pub(crate) mod attempts;
pub(crate) mod checkpoints;
#[cfg(feature = "cli")]
pub(crate) mod checkup;
pub(crate) mod commands;
pub(crate) mod continuity;
pub(crate) mod coordination;
mod deal;
mod discarding;
pub(crate) mod event_store;
pub(crate) mod event_tables;
pub(crate) mod events;
pub(crate) mod execution;
pub(crate) mod fence;
pub(crate) mod folds;
pub(crate) mod forgetting;
mod inspection;
mod key;
mod key_set;
pub(crate) mod lags;
pub(crate) mod locks;
pub(crate) mod migrations;
mod names;
pub(crate) mod notifications;
pub(crate) mod operations;
pub(crate) mod outcome;
pub(crate) mod overview;
pub(crate) mod parked;
pub(crate) mod preflight;
pub(crate) mod prepared;
mod privileges;
pub(crate) mod progress;
pub(crate) mod read_model;
pub(crate) mod rebuilds;
mod registration;
mod releasing;
pub(crate) mod rewinding;
pub(crate) mod safe_head;
mod scopes;
pub(crate) mod sequence;
pub(crate) mod session;
mod template;
pub(crate) mod view;
pub(crate) mod waiting;

#[cfg(test)]
mod equivalence;
#[cfg(test)]
pub(crate) mod testing;

pub use names::Names;
pub(crate) use registration::{Known, Registration};

/// A timestamp as microseconds on the server's clock, in SQL.
pub(crate) fn micros(expression: &str) -> String {
    format!("(extract(epoch FROM {expression}) * 1000000)::bigint")
}
