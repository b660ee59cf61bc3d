//! How far a rebuild is, how fast it goes, and what keeps it from its switch. Pure.
//!
//! One statement reads a [`Reading`]. The command line, `/status`, the metrics and the log show the
//! [`RebuildRecord`] that is made of it here.

mod obstacles;
mod pace;
mod reading;
mod record;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use self::pace::Readings;
pub(crate) use self::reading::Reading;
pub use self::record::{OldRecord, RebuildRecord};
