//! What a projection without `reset` or `forget` answers.

/// The error of a projection that cannot clear its read model.
#[derive(Debug, thiserror::Error)]
#[error("the projection has no reset()")]
pub(crate) struct NoReset;

/// The error of a projection that cannot delete what it has of one aggregate.
#[derive(Debug, thiserror::Error)]
#[error("the projection has no forget()")]
pub(crate) struct NoForget;
