//! A test kit: a PostgreSQL server that tests start by themselves.
//!
//! # Where the binaries come from
//!
//! A server needs PostgreSQL's binaries `initdb` and `postgres`, version 14 or later.

mod binaries;
mod database;
mod error;
mod output;
mod private_postgres;
mod server;
mod statement;
mod user;
mod watchdog;

pub use database::{TestDatabase, database};
pub use error::Error;
pub use private_postgres::{Postgres, PostgresOptions, StopMode};
