//! What a user of the library writes: projections of each kind, and what their handlers may return.

mod calling;
mod declared;
mod guarded;
mod kinds;
mod passing;
mod reaction;
mod refused;
mod traits;

pub(crate) use self::calling::{handle, react};
pub(crate) use self::declared::{declare, forward};
pub(crate) use self::guarded::guarded;
pub(crate) use self::kinds::{Batches, Each, Effects, Failed, Handler, NO_READ_MODEL, Reacts, Work, Writes};
pub use self::passing::Passing;
pub use self::reaction::{Call, Reaction};
pub(crate) use self::refused::Refused;
pub use self::traits::{BatchProjection, Projection};
