//! The guide: one page per task.

#[cfg(feature = "testing")]
#[doc = include_str!("testing.md")]
pub mod testing {}
