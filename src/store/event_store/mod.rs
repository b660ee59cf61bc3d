//! The statements of the event store. They are executed on a connection of the application, whose
//! search path and other settings are unknown, so each function and operator is qualified.

mod append;
mod read_stream;

pub(crate) use append::{Appended, append};
pub(crate) use read_stream::read_stream;
