//! What projections of all kinds say of themselves, in one place: the traits and their
//! implementations are declared from it.

/// Declares the methods in a trait.
macro_rules! declaration {
    () => {
        /// The name its checkpoints are kept under: 1 to 255 bytes, unique in the database, and the
        /// same for ever. Read once, by [`build`](crate::Builder::build), as the following are.
        fn name(&self) -> &str;

        /// Which events it wants. Defaults to every event.
        fn scope(&self) -> Scope {
            Scope::all()
        }

        /// Where it begins when it is run for the first time. Defaults to the beginning.
        fn start_at(&self) -> StartAt {
            StartAt::Beginning
        }

        /// How it is retried when it fails. Defaults to the settings of the
        /// [builder](crate::Builder::retry).
        fn retry(&self) -> Option<Retry> {
            None
        }
    };
}

/// Implements them by those of what `self` leads to.
macro_rules! forwarded {
    () => {
        fn name(&self) -> &str {
            (**self).name()
        }

        fn scope(&self) -> Scope {
            (**self).scope()
        }

        fn start_at(&self) -> StartAt {
            (**self).start_at()
        }

        fn retry(&self) -> Option<Retry> {
            (**self).retry()
        }
    };
}

pub(super) use {declaration, forwarded};
