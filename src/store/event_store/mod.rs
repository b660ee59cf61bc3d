//! What the event store executes, on a connection of the application's: its search path and its
//! other settings are unknown, so each function and operator is qualified.

mod append;
mod read_stream;

pub(crate) use append::{Appended, append};
pub(crate) use read_stream::read_stream;
