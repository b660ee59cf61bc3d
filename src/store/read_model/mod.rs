//! Copies of a projection's tables, for a rebuild beside the live read model.
//!
//! [`find()`] resolves the names that a projection gives, and [`obstacles()`] lists what cannot be
//! carried over. [`create()`] makes empty copies in a schema of their own. Then either [`swap()`]
//! puts the copies in the place of the live tables, or [`replace()`] makes the content of the live
//! tables equal to that of the copies. [`remove()`] drops a schema of copies, or of old tables.
//!
//! *Invariant:* no property of a table gets lost in silence. A property is a part of the
//! [`definition`], or it is an obstacle. [`create()`] and [`verify()`] compare the definitions of the
//! live tables and of the copies, and refuse if they differ.
//!
//! Event triggers fire for the statements of this module, as for those of anyone else. If one of
//! them changes a copy, the comparison detects it.

mod create;
mod definition;
mod estimate;
mod find;
mod obstacle;
mod obstacles;
mod path;
mod refusal;
mod related;
mod remove;
mod replace;
mod shape;
mod swap;
mod table;

#[cfg(test)]
mod tests;

pub(crate) use create::create;
pub(crate) use estimate::{lock_time_of_copy, size};
pub(crate) use find::find;
pub(crate) use obstacle::Obstacle;
#[cfg(test)]
pub(crate) use obstacle::{Hinders, Kind};
pub(crate) use obstacles::obstacles;
pub(crate) use refusal::Refusal;
pub(crate) use related::related;
pub(crate) use remove::remove;
#[cfg(test)]
pub(crate) use replace::Replaced;
pub(crate) use replace::replace;
pub(crate) use swap::{swap, verify};
pub(crate) use table::{Copy, Table};
