//! What a user of the library writes: a projection, and what its handler may return.

mod calling;
mod declared;
mod kinds;
mod passing;
mod resetting;
mod traits;

pub(crate) use self::calling::call;
pub(crate) use self::kinds::{Batches, Each, Handler};
pub use self::passing::Passing;
pub(crate) use self::resetting::{NoForget, NoReset};
pub use self::traits::{BatchProjection, Projection};
