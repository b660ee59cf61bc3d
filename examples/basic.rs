//! Counts how often each order was placed, exactly once, until Enter is pressed.

use std::time::Duration;

use pupsourcing_orchestrator::{BoxError, Database, Event, Orchestrator, Projection, Tx};

struct OrdersPlaced;

impl Projection for OrdersPlaced {
    fn name(&self) -> &str {
        "orders_placed"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        if event.event_type() == "OrderPlaced" {
            // Committed together with the checkpoint.
            tx.execute(
                "INSERT INTO orders_placed AS o VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET times = o.times + 1",
                &[&event.aggregate_id()],
            )?;
        }
        Ok(())
    }
}

fn main() -> Result<(), BoxError> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let database = Database::from_url(&std::env::var("DATABASE_URL")?)?;
    let table = "CREATE TABLE IF NOT EXISTS orders_placed (id text PRIMARY KEY, times bigint NOT NULL)";
    database.connect()?.batch_execute(table)?;

    let orchestrator = Orchestrator::builder(database, "main-projections").projection(OrdersPlaced).build()?;
    orchestrator.migrate()?;
    let handle = orchestrator.start()?;
    std::io::stdin().read_line(&mut String::new())?;
    handle.shutdown(Duration::from_secs(30))?;
    Ok(())
}
