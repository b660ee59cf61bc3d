//! The error of a fold whose rows another worker has changed.

/// Another worker has changed rows of the fold since they were read. Nothing is lost: the batch is
/// rolled back, and handled again.
#[derive(Debug, thiserror::Error)]
#[error("another worker has changed rows of table {table:?} meanwhile: the batch is handled again, with locks")]
pub(crate) struct Overtaken {
    pub(super) table: String,
}
