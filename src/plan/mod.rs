mod keys;
mod view;
pub use keys::*;
pub use view::*;
