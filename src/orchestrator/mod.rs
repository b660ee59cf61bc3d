//! The orchestrator: its builder, the migration, the start, and the handle of a running worker. It
//! is the only module that depends on all others.

mod builder;
#[cfg(feature = "cli")]
mod checkup;
mod deploying;
mod handle;
mod hosted;
mod reach;
mod register;
mod run_to;
mod start;
mod worker;

pub use builder::Builder;
pub use handle::Handle;
pub use worker::Orchestrator;
