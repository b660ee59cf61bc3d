//! The worker that keeps the read models up to date. Start as many of them as you like.

use pupsourcing_orchestrator::cli;
use shop::{Orders, Products, TABLES, ToShip};

fn main() -> std::process::ExitCode {
    cli::main(|worker| worker.projection(Orders).batch_projection(Products).projection(ToShip).migration_sql(TABLES))
}
