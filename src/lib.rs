#![doc = include_str!("../README.md")]

mod backoff;
mod blocking;
mod catch_up;
mod config;
mod context;
mod coordinator;
mod database;
#[cfg(test)]
mod documented;
mod error;
mod event;
mod event_store;
mod feed;
mod goal;
#[cfg(any(doc, doctest))]
pub mod guide;
mod health;
mod http;
mod idle;
mod leave;
mod listener;
mod measure;
mod metrics;
mod orchestrator;
mod overview;
mod plan;
mod projection;
mod reconnect;
mod runner;
mod scope;
mod shortage;
mod status;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod threads;
mod trust;
mod watch;

pub use catch_up::Progress;
pub use config::Retry;
pub use database::{AsClient, Connection, Database};
pub use error::{BoxError, Error};
pub use event::{Event, EventParts, NewEvent};
pub use event_store::{AppendError, AppendResult, EventStore, ExpectedVersion};
pub use http::{HealthProbe, MetricsServer};
pub use metrics::Metrics;
pub use orchestrator::{Builder, Handle, Orchestrator};
pub use plan::{WorkerId, WorkerState};
pub use projection::{Passing, Projection};
pub use scope::{Scope, StartAt};
pub use status::{Assignment, HeadBlocker, ProjectionState, ProjectionStatus, Status};
pub use store::Names;

/// The database client whose types appear in this library's interface.
pub use postgres;
