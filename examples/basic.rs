//! Keeps what each order costs, exactly once, until Ctrl-C or SIGTERM.

use std::process::ExitCode;

use pupsourcing_orchestrator::{BoxError, Event, Projection, Scope, Tx, cli};
use serde::Deserialize;

/// The variant is the event type, and its fields are the payload, as JSON.
#[derive(Deserialize)]
enum OrderEvent {
    Placed {
        cents: i64,
    },
    #[serde(other)]
    Other,
}

struct OrdersPlaced;

impl Projection for OrdersPlaced {
    fn name(&self) -> &str {
        "orders_placed"
    }

    fn scope(&self) -> Scope {
        Scope::all().aggregate_types(["Order"])
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        if let OrderEvent::Placed { cents } = event.decode()? {
            // Committed together with the checkpoint.
            tx.execute(
                "INSERT INTO orders_placed AS o VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET cents = o.cents + $2",
                &[&event.aggregate_id(), &cents],
            )?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let table = "CREATE TABLE IF NOT EXISTS orders_placed (id text PRIMARY KEY, cents bigint NOT NULL)";
    cli::main(|worker| worker.projection(OrdersPlaced).migration_sql(table))
}
