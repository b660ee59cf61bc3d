//! What a projection without `reset` answers.

/// The error of a projection that cannot clear its read model.
#[derive(Debug, thiserror::Error)]
#[error("the projection has no reset()")]
pub(crate) struct NoReset;
