//! What projections of all kinds declare about themselves, in one place: the traits and their
//! implementations are generated from it.
//!
//! The methods are in groups, because not every kind has all of them. Every kind is `named`. What
//! builds a read model is `built`, and what says itself which tables those are is their `owner`.

/// Declares methods in a trait.
macro_rules! declare {
    (named) => {
        /// The name of the projection, under which its checkpoints are stored: 1 to 255 bytes,
        /// unique in the database, and never changed. [`build`](crate::Builder::build) calls this
        /// method, and those below that declare something, once.
        fn name(&self) -> &str;

        /// Which events the projection handles. Defaults to every event.
        fn scope(&self) -> Scope {
            Scope::all()
        }

        /// The projection's own settings. What they leave out comes from the
        /// [builder](crate::Builder), and the program that runs the projection can change them:
        /// see [`Builder::projection_with`](crate::Builder::projection_with). Defaults to none.
        fn options(&self) -> Options {
            Options::default()
        }
    };
    (starting at the beginning) => {
        /// Where the projection begins when it is run for the first time. Defaults to the
        /// beginning.
        fn start_at(&self) -> StartAt {
            StartAt::Beginning
        }
    };
    (built) => {
        /// The version of the projection's code, 1 or higher. Raise it when the read model has to
        /// be built anew because the code has changed. When a worker with a higher version than
        /// that of the live read model starts, it asks for a [rebuild](crate::guide::rebuilding),
        /// and takes part in it with all workers of its version. Meanwhile workers of the older
        /// version keep the live read model up to date. If none of them is left, it stands still
        /// until the switch. After the switch, they process this projection no more, and go on with
        /// their others. A worker with a lower version never takes a projection over. The rebuild
        /// has the scope, the start, the tables and the policy of the new version, and its default
        /// rate.
        ///
        /// If the read model cannot be rebuilt, the start fails with
        /// [`Error::CannotRebuild`](crate::Error::CannotRebuild), which lists everything that is in
        /// the way. So a rolling deployment stops at its first worker.
        ///
        /// Of each version and [build](crate::Builder::build_id), workers ask for the rebuild once.
        /// They do not begin it again at their next start if it has failed, if a person has
        /// cancelled it, or has brought the former read model back. An operator can: with the
        /// command `rebuild` and the argument `{"version": 2}`. A rebuild for a lower version, or
        /// of another build, is cancelled first. If it is rolled back instead, the
        /// rebuild stays, and delays nothing: its workers continue it when they come back, a higher
        /// version takes its place, or an operator cancels it.
        ///
        /// Defaults to 1.
        fn version(&self) -> u32 {
            1
        }

        /// Called once when the projection has handled all events for the first time after its
        /// first start, after a rewind, or after the switch of a rebuild: when every worker's part
        /// has come to where the newest event was.
        ///
        /// One worker calls it, in a transaction of its own, and other workers go on meanwhile.
        /// What it writes is committed together with the record that it was called. So these
        /// effects happen exactly once, and everything else at least once. After an error it is
        /// called again, after the delays of [`Retry`](crate::Retry); the projection goes on.
        ///
        /// Defaults to doing nothing.
        fn caught_up(&self, tx: &mut Tx<'_>) -> Result<(), BoxError> {
            _ = tx;
            Ok(())
        }
    };
    (owner) => {
        /// Clears the read model for a rewind: afterwards, it has to be as if only the events up to
        /// the global position `to` had been handled; 0 is before the first event. Then the events
        /// above `to` are handled again, with [`Tx::is_replay`](crate::Tx::is_replay).
        ///
        /// The transaction is as for a batch, and the checkpoints move in it. No other worker
        /// handles events of the projection meanwhile, and no lock is held that another projection
        /// needs, so it may take long. If the worker ends before it is committed, another worker
        /// calls `reset` again. After three errors, the command has failed, and the projection
        /// continues where it was.
        ///
        /// A projection that is to be rewound only to the beginning can refuse other positions with
        /// an error. Defaults to refusing all.
        fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
            _ = (tx, to);
            Err(Box::new(Refused::no_reset()))
        }

        /// Deletes what the read model has of one aggregate, so that its events can be handled
        /// again by the command `rebuild_aggregate`: afterwards, the read model has to be as if no
        /// event of the aggregate had ever been handled. What the aggregate has added to rows that
        /// it shares with others, such as totals, has to be taken off.
        ///
        /// The transaction is as for a batch. The events of the aggregate are handled again in it,
        /// with [`Tx::is_replay`](crate::Tx::is_replay), up to where the projection had come. So
        /// readers see the former rows until it is committed. Meanwhile new events of the aggregate
        /// wait, and those of other aggregates are handled. If the worker ends before it is
        /// committed, another worker calls `forget` again. After three errors, the command has
        /// failed, and the former rows stay. See [the guide](crate::guide::failures).
        ///
        /// Defaults to refusing that.
        fn forget(&self, tx: &mut Tx<'_>, aggregate: &StreamId) -> Result<(), BoxError> {
            _ = (tx, aggregate);
            Err(Box::new(Refused::no_forget()))
        }

        /// The names of the tables that the handler writes, without a schema: exactly as they are
        /// in PostgreSQL's catalog, and found through the search path of the worker's sessions.
        /// With them, the read model can be [rebuilt](crate::guide::rebuilding) while it stays
        /// readable. No two projections may name the same table. Defaults to none, and then a
        /// rebuild is refused, and so is the start of a worker with a higher
        /// [`version`](Self::version).
        ///
        /// In a rebuild, the handler's names lead to copies of these tables. It is cancelled if the
        /// handler writes to anything else that exists, temporary tables excepted, or reads the
        /// live tables by a qualified name or through a function with a search path of its own. A
        /// `NOTIFY` is sent, though, and what the handler does outside its transaction is done:
        /// [`Tx::is_replay`](crate::Tx::is_replay), which is true in a rebuild, tells when to leave
        /// it out.
        fn tables(&self) -> &[&str] {
            &[]
        }
    };
}

/// Implements these methods by calling those of the value that `self` dereferences to.
macro_rules! forward {
    (named) => {
        fn name(&self) -> &str {
            (**self).name()
        }

        fn scope(&self) -> Scope {
            (**self).scope()
        }

        fn options(&self) -> Options {
            (**self).options()
        }

        fn start_at(&self) -> StartAt {
            (**self).start_at()
        }
    };
    (built) => {
        fn version(&self) -> u32 {
            (**self).version()
        }

        fn caught_up(&self, tx: &mut Tx<'_>) -> Result<(), BoxError> {
            (**self).caught_up(tx)
        }
    };
    (owner) => {
        fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
            (**self).reset(tx, to)
        }

        fn forget(&self, tx: &mut Tx<'_>, aggregate: &StreamId) -> Result<(), BoxError> {
            (**self).forget(tx, aggregate)
        }

        fn tables(&self) -> &[&str] {
            (**self).tables()
        }
    };
}

pub(crate) use {declare, forward};
