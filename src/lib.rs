//! Runs the projections (read models) of an event-sourced system on any number of identical worker
//! processes, exactly once, coordinated by nothing but PostgreSQL. Blocking and thread-based: no
//! async runtime in its code or its interface.
//!
//! **Begin with the [`guide`]**: it has one page per task, and the first one leads to a
//! [running projection](guide::getting_started) in ten minutes.
//!
//! | you want to | begin with |
//! |---|---|
//! | build a read model | [`Projection`], [`BatchProjection`], [`Scope`], [`Tx`] |
//! | keep a state per key, which the library reads and writes | [`Fold`], [`Column`] |
//! | have effects outside the database | [`Reaction`] |
//! | give one projection settings of its own | [`Options`] |
//! | have a whole worker program | [`cli::main`] |
//! | run a worker among the threads of an application | [`Orchestrator`], [`Builder`], [`Handle`] |
//! | append and read events | [`EventStore`], [`NewEvent`], [`StreamId`] |
//! | pause, resume or rewind a projection | [`operator`], or the commands of [`cli`] |
//! | serve metrics, probes and the status page | [`MetricsServer`], [`Metrics`], [`HealthProbe`] |
//! | test projections | [`testing::Scenario`] |
//!
//! | feature | |
//! |---|---|
//! | `http` (default) | [`MetricsServer`]: metrics, probes, status page |
//! | `tls` (default) | TLS by rustls; without it, `sslmode=require` and more are refused |
//! | `cli` | [`cli::main`], the worker program |
//! | `testing` | [`testing`], a private PostgreSQL and scenarios for the tests of an application |
//!
//! In an asynchronous application, every function may be called on a thread of the runtime; it
//! blocks there. Only a client or [`Connection`] that you use directly needs a thread that may
//! block; see [the page on appending events](guide::event_store).

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(feature = "cli", feature = "http", feature = "testing", feature = "tls")),
    allow(rustdoc::broken_intra_doc_links, reason = "the pages also name what needs another feature")
)]

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod backoff;
mod blocking;
mod catch_up;
#[cfg(feature = "cli")]
pub mod cli;
mod config;
mod context;
mod coordinator;
mod database;
#[cfg(test)]
mod documented;
mod errands;
mod error;
mod event;
mod event_store;
mod feed;
mod fold;
mod goal;
#[cfg(any(doc, doctest))]
pub mod guide;
mod health;
#[cfg(feature = "http")]
mod http;
mod idle;
mod leave;
mod listener;
mod measure;
mod metrics;
mod moment;
pub mod operator;
mod orchestrator;
mod overview;
mod plan;
mod probe;
mod projection;
mod rebuilding;
mod reconnect;
mod runner;
mod scope;
mod shortage;
mod status;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod threads;
mod trust;
mod tx;
mod watch;

pub use catch_up::Progress;
pub use config::{OnFailure, Options, Retry};
pub use database::{AsClient, Connection, Database};
pub use error::{BoxError, Error};
pub use event::{DecodeError, EncodeError, Event, EventParts, NewEvent, StreamId};
pub use event_store::{AppendError, AppendResult, CommandError, EventStore, ExpectedVersion, LoadError, WaitError};
pub use fold::{Column, Fold};
#[cfg(feature = "http")]
pub use http::{MetricsServer, MetricsServerBuilder};
pub use metrics::Metrics;
pub use orchestrator::{Builder, Handle, Orchestrator};
pub use plan::{WorkerId, WorkerState};
pub use probe::{HealthProbe, StatusReport, Unhealthy};
pub use projection::{BatchProjection, Call, Passing, Projection, Reaction};
pub use scope::{Scope, StartAt};
pub use status::{Assignment, HeadBlocked, HeadBlocker, Keys, ProjectionState, ProjectionStatus, Status};
pub use store::Names;
pub use tx::{Sql, Tx};

/// The crates whose types and traits appear in this library's interface.
#[doc(no_inline)]
pub use {crossbeam_channel, postgres, prometheus, serde, serde_json, uuid};
