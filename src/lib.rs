//! stub
mod database;
mod error;
mod event;
mod plan;
mod projection;
mod status;
mod store;
mod threads;
pub use database::Database;
pub use error::*;
pub use event::*;
pub use plan::*;
pub use projection::*;
pub use status::*;
pub use store::Names;
