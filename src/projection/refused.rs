//! What a projection answers that cannot do what an operator asks for.

use std::borrow::Cow;

/// The projection cannot do this, and another attempt would not change that.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(Cow<'static, str>);

impl Refused {
    pub(crate) fn new(why: impl Into<Cow<'static, str>>) -> Self {
        Self(why.into())
    }

    pub(crate) fn no_reset() -> Self {
        Self::new(
            "it has no reset(): implement it, so that it clears the read model, and deploy that; or remove the projection and \
             give it a new name",
        )
    }

    pub(crate) fn no_forget() -> Self {
        Self::new(
            "it has no forget(): implement it, so that it deletes the rows of one aggregate, and deploy that; or rebuild the \
             whole read model",
        )
    }
}
