//! Events: those that are read, and those that are appended.

mod buffer;
mod new_event;
mod stored;
mod stream_id;
mod typed;

pub(crate) use self::buffer::{EventBuffer, EventColumns, Room};
pub use self::new_event::NewEvent;
pub use self::stored::{Event, EventParts};
pub use self::stream_id::StreamId;
pub use self::typed::{DecodeError, EncodeError};
