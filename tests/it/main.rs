//! The library on a real PostgreSQL, which the tests start by themselves.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod aggregates;
mod async_append;
mod bad_input;
mod bad_schema;
mod batches;
mod broken_rows;
mod caught_up;
mod cli;
mod cli_commands;
mod commands;
mod crashes;
mod custom_metrics;
mod deals;
mod embedding;
mod emptied_events;
mod environment;
mod event_store;
mod event_tables;
mod failover;
mod failures;
mod feed;
mod folds;
mod guide;
mod handles;
mod hangs;
mod http_commands;
mod joins_and_leaves;
mod kept_statements;
mod lanes;
mod logins;
mod logs;
mod long_waits;
mod many_at_once;
mod operator;
mod options;
mod parking;
mod payloads;
mod poison;
mod poolers;
mod positions;
mod private_postgres;
mod probes;
mod prometheus;
mod reaction_failures;
mod reaction_flights;
mod reaction_processes;
mod reactions;
mod readme;
mod rebuild_aggregate;
mod rebuild_commands;
mod rebuild_deployments;
mod rebuild_guard;
mod rebuild_processes;
mod rebuild_roles;
mod rebuild_switch;
mod rebuild_versions;
mod rebuild_waits;
mod rebuilding;
mod recutting;
mod restarts;
mod roles;
mod rolling_deploys;
mod rollouts;
mod run_to;
mod runtimes;
mod safe_head;
mod scenarios;
mod scopes;
mod screenshots;
mod sessions;
mod settings;
mod shortage;
mod status_page;
mod storm;
mod strangers;
mod support;
mod tls;
mod waiting;
mod worker_example;
mod zombies;
