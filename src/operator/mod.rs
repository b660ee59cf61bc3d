//! Commands for operators: pause, resume, rewind and rebuild a projection, remove what is left of
//! one, and replay or discard what a projection has parked.
//!
//! A command is a row, so it survives every crash. A worker of the projection's replica set applies
//! it and records the outcome. The worker program has the same [as commands](crate::cli), and the
//! SQL function `orchestrator_command` is enough in an emergency: see [the page on
//! operating](crate::guide::operating). Who may command is decided by GRANT.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use pupsourcing_orchestrator::operator::{Command, Operator, RewindTo};
//! use pupsourcing_orchestrator::{Database, Names};
//!
//! let mut client = Database::from_url("postgres://shop_operator@localhost/shop")?.connect()?;
//! let operator = Operator::new(Names::default())?;
//!
//! let pause = Command::pause("orders").reason("the disk is full").by("kim");
//! let applied = operator.execute(&mut client, &pause, Duration::from_secs(30))?;
//! println!("{applied}"); // orders is paused at position 81,234 on 3 workers
//!
//! let rewind = Command::rewind("orders", RewindTo::Position(80_000)).reason("wrong totals");
//! operator.execute(&mut client, &rewind, Duration::from_secs(600))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod applied;
mod calls;
mod command;
mod error;
mod patience;
mod rebuild;
pub(crate) mod words;

pub use self::applied::Applied;
pub use self::calls::Operator;
pub use self::command::{Command, Replay, RewindTo};
pub use self::error::OperatorError;
pub use self::rebuild::Rebuild;
pub use crate::rebuilding::{OldRecord, RebuildRecord};
pub use crate::store::operations::{CommandRecord, ParkedRecord, ProjectionRecord};
