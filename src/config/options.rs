//! Declares every option. To add one, add a row here and read the field where it is needed.
//!
//! A row is
//!
//! ```text
//! /// The sentence that the tables of options show.
//! ///
//! /// The rest of the setter's documentation.
//! name: Value = (default), (bounds);
//! ```
//!
//! From a row, macros generate the field and its default, the check of the bounds, the setter with
//! its documentation, and the code that reads the option from text. Tests check that the tables in
//! `src/guide/tuning.md` and `src/cli/settings.md` equal the rows;
//! `UPDATE_DOCS=1 cargo test --lib lists_the` writes them. What options require of one another is
//! in `Config::validate_relations`, and the kinds of values are in `value.rs`.

/// Passes the options of the builder to a macro, after the tokens in braces.
macro_rules! with_options {
    ($then:ident! { $($given:tt)* }) => {
        $then! {
            $($given)*

            /// How often the worker reports that it is alive.
            heartbeat_interval: Duration = (5 s), (10 ms to 24 h);

            /// How long a worker may send no heartbeat before it is considered dead; at least three
            /// heartbeat intervals.
            ///
            /// This bounds how long a frozen process, or one on a host that is cut off, keeps its
            /// partition.
            stale_worker_timeout: Duration = (30 s), (30 ms to 24 h);

            /// How long a worker's session lock must be gone before the worker is considered dead.
            ///
            /// This bounds how long a killed process keeps its partition. At most
            /// `stale_worker_timeout`. See also [`heartbeats_only`](Self::heartbeats_only).
            session_loss_grace: DurationOrOff = (1 s), (10 ms to 24 h);

            /// How long the workers of a new generation have to become ready; later ones are
            /// excluded. Must be longer than the longest call of a handler.
            coordination_timeout: Duration = (60 s), (100 ms to 24 h);

            /// How often the worker reads the state of its replica set without being notified.
            ///
            /// At most `coordination_timeout`.
            poll_interval: Duration = (1 s), (10 ms to 24 h);

            /// How long joins are gathered before a new generation is created.
            ///
            /// All workers keep processing meanwhile. It delays neither the first start of a
            /// replica set nor the redistribution when a worker is gone. At most
            /// `coordination_timeout`.
            registration_wait: Duration = (1 s), (0 s to 24 h);

            /// How long `migrate` and `start` wait for a server that is away.
            ///
            /// That is a server that refuses connections, does not answer, has no connection left,
            /// is starting up or shutting down, is a standby, or is not the primary that
            /// `target_session_attrs` asks for; or a pooler that has no connection to give. An
            /// answer that waiting does not change, such as a wrong password, is returned at once.
            /// With zero, they do not wait.
            database_wait: Duration = (1 min), (0 s to 24 h);

            /// How long a worker that leaves waits for its handlers and for the server.
            ///
            /// Then it cancels the statements that still run, and what they did is rolled back. If
            /// the server does not answer that either, the worker ends three seconds later and
            /// leaves the waiting threads behind. Should be longer than the longest call of a
            /// handler and shorter than the time after which the process is killed.
            leave_timeout: Duration = (20 s), (100 ms to 24 h);

            /// Whether the worker is ready while one of its projections is halted.
            ///
            /// `off` stops a rolling update at a version that fails on its first events. With `on`,
            /// `/readyz` ignores halted projections, and only the alerts report them.
            ready_while_halted: Switch = (off), (on or off);

            /// How often the worker polls for new events: the shortest interval while it finds
            /// some, rising to the longest.
            ///
            /// One poll serves all projections. A [hint](crate::EventStore::hint) makes the worker
            /// poll at once, and then after the shortest interval or 5 ms, whichever is less.
            event_poll: DurationRange = (5 ms and 250 ms), (1 ms to 24 h);

            /// The maximum number of events in one transaction.
            batch_size: Count = (2000), (1 to 1000000);

            /// How long the handlers may take in one transaction. After that, it is committed with
            /// the events handled so far.
            ///
            /// A longer time means fewer commits, but older read models and row locks that are held
            /// longer. A call of a handler is never interrupted.
            batch_time: Duration = (250 ms), (1 ms to 24 h);

            /// The maximum number of bytes of events in one transaction: payload, metadata and
            /// texts.
            ///
            /// An event that is larger by itself is handled alone.
            batch_bytes: Bytes = (8 MiB), (at least 1);

            /// The maximum number of bytes of one event; a projection that wants a larger one halts
            /// before it.
            ///
            /// The error names the event's position. The worker would need several times as much
            /// memory to read it.
            max_event_bytes: Bytes = (64 MiB), (at least 1);

            /// What happens when the attempts at an event are used up: the projection halts, or the
            /// event's aggregate is parked, at most so many of each projection.
            ///
            /// The events of a parked aggregate wait until an operator replays them; all other
            /// aggregates proceed. See [`OnFailure`](crate::OnFailure). A projection that has a
            /// policy of its own ([`Options::on_failure`](crate::Options::on_failure)) follows
            /// that.
            on_failure: OnFailure = (halt), (halt or park at least 1);

            /// The number of lanes, each a thread, into which a worker divides its part of each
            /// projection, by aggregate.
            ///
            /// Each lane has a transaction of its own, so several handlers can wait for the
            /// database, or compute, at once. Each event is still handled once, and those of an
            /// aggregate in order. [`handle`](crate::Projection::handle) is called from as many
            /// threads at once. A projection may have a number of its own: see
            /// [`Options::lanes`](crate::Options::lanes).
            lanes: Count = (1), (1 to 64);

            /// The maximum number of connections in the pool that the projections use.
            ///
            /// The worker uses three more connections: for coordination, notifications and the live
            /// tail.
            pool_size: Connections = (two for each lane of each projection), (the default to 10000);
        }
    };
}

/// Passes the options of [`Retry`](super::Retry) to a macro, after the tokens in braces.
macro_rules! with_retry_options {
    ($then:ident! { $($given:tt)* }) => {
        $then! {
            $($given)*

            /// How many times a failing event is tried before the projection halts.
            ///
            /// [`Retry`](crate::Retry) lists what does not count. An event that ends the process or
            /// its connection is tried at least three times, because it first has to be found in
            /// its batch.
            attempts: Attempts = (8), (at least 1);

            /// The delay after the first failure; it doubles with each further one.
            first_delay: Duration = (100 ms), (1 ms to 24 h);

            /// The longest delay between two attempts.
            ///
            /// At least `first_delay`.
            longest_delay: Duration = (30 s), (at least 1 ms);

            /// How often a halted projection tries again, with one event.
            ///
            /// If that succeeds, the projection continues by itself.
            /// See also [`stay_halted`](crate::Retry::stay_halted).
            halted_interval: DurationOrOff = (1 min), (10 ms to 24 h);
        }
    };
}

pub(crate) use {with_options, with_retry_options};
