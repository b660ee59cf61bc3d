//! The worker that keeps the read models up to date and sends receipts. Start as many as you like.

use pupsourcing_orchestrator::{BoxError, cli};
use shop::{Orders, Receipts, TABLES, ToShip};

fn main() -> std::process::ExitCode {
    cli::main(|worker| worker.projection(ToShip).fold(Orders).reaction(Receipts(send)).migration_sql(TABLES))
}

/// In real life, this calls a service for mails, which ignores a key that it knows already.
fn send(address: &str, key: &str) -> Result<(), BoxError> {
    println!("receipt {key} to {address}");
    Ok(())
}
