//! What a user of the library writes: a projection, and what its handler may return.

mod declared;
mod kinds;
mod passing;
mod resetting;
mod traits;

pub(crate) use self::kinds::{Batches, Each, Handler};
pub use self::passing::Passing;
pub(crate) use self::resetting::NoReset;
pub use self::traits::{BatchProjection, Projection};
