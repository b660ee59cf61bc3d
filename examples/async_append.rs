//! An asynchronous application that appends with a client of its own. It calls the SQL function
//! that the migrations create, with its own types, and has the same guarantees as
//! `EventStore::append`. The worker runs in the same process, in threads of its own, which need no
//! runtime and block none.
//!
//! Eight visitors put items into one cart at the same time. A cart holds at most 50 items, so each
//! visitor decides by the cart's events, and decides again if another visitor was faster.
//!
//! `DATABASE_URL` names the database that has the events.

use std::time::Duration;

use pupsourcing_orchestrator::{BoxError, Database, Error, Event, Handle, Orchestrator, Projection, Tx};
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

const CART: &str = "cart-7";
const VISITORS: usize = 8;
const ITEMS_OF_EACH: usize = 10;
const MOST_ITEMS: usize = 50;
/// How many times a visitor decides again before it gives up.
const ATTEMPTS: usize = 100;

/// The function determines the types of the parameters, so no cast is needed.
const APPEND: &str =
    "SELECT global_position, aggregate_version FROM orchestrator_append('shop', 'Cart', $1, $2, $3, $4, $5, $6)";
const LOAD: &str = "SELECT aggregate_version FROM events
    WHERE bounded_context = 'shop' AND aggregate_type = 'Cart' AND aggregate_id = $1 ORDER BY aggregate_version";
/// Wakes the workers, which poll in any case. It names the table of events, quoted.
const HINT: &str = r#"SELECT pg_notify('pupsourcing_events', '"public"."events"')"#;

/// An event of a cart.
#[derive(Serialize, Deserialize)]
struct ItemAdded {
    sku: String,
}

impl ItemAdded {
    const TYPE: &str = "ItemAdded";
    const VERSION: i32 = 1;
}

/// The outcome of an append.
enum Outcome {
    /// The events are stored; the last one is at this global position.
    Appended(i64),
    /// Another writer has appended in between. Nothing was written.
    Conflict,
}

/// A connection with the statements of this application.
struct Store {
    client: Client,
    append: Statement,
    load: Statement,
}

impl Store {
    async fn connect(url: &str) -> Result<Self, tokio_postgres::Error> {
        let client = connect(url).await?;
        let (append, load) = (client.prepare(APPEND).await?, client.prepare(LOAD).await?);
        Ok(Self { client, append, load })
    }

    /// Returns how many items the cart has, and its version.
    async fn load(&self, cart: &str) -> Result<(usize, i64), tokio_postgres::Error> {
        let rows = self.client.query(&self.load, &[&cart]).await?;
        Ok((rows.len(), rows.last().map_or(0, |row| row.get(0))))
    }

    /// Appends to a cart that is at the expected version, in one round trip and one transaction.
    async fn append(&self, cart: &str, expected: i64, events: &[ItemAdded]) -> Result<Outcome, BoxError> {
        let ids: Vec<Uuid> = events.iter().map(|_| Uuid::new_v4()).collect();
        let (types, versions) = (vec![ItemAdded::TYPE; events.len()], vec![ItemAdded::VERSION; events.len()]);
        let payloads = events.iter().map(serde_json::to_vec).collect::<Result<Vec<_>, _>>()?;
        let rows = self.client.query(&self.append, &[&cart, &expected, &ids, &types, &versions, &payloads]).await?;
        // In a conflict, the only row has no position.
        let position: Option<i64> = rows.last().ok_or("nothing was appended")?.get(0);
        Ok(position.map_or(Outcome::Conflict, Outcome::Appended))
    }

    /// Wakes the workers. Call it after the commit, never within the transaction, because
    /// notifications serialise commits.
    async fn hint(&self) {
        if let Err(error) = self.client.execute(HINT, &[]).await {
            log::debug!("no hint sent: {error}");
        }
    }

    /// Adds an item unless the cart is full. Returns the event's position, or none.
    async fn add_item(&self, cart: &str, sku: &str) -> Result<Option<i64>, BoxError> {
        for _ in 0..ATTEMPTS {
            let (items, version) = self.load(cart).await?;
            if items >= MOST_ITEMS {
                return Ok(None);
            }
            let event = ItemAdded { sku: sku.to_owned() };
            if let Outcome::Appended(position) = self.append(cart, version, &[event]).await? {
                self.hint().await;
                return Ok(Some(position));
            }
        }
        Err(format!("{cart} changed {ATTEMPTS} times in a row").into())
    }
}

/// The read model: how often each item is in a cart.
struct CartItems;

impl CartItems {
    const TABLE: &str = "CREATE TABLE IF NOT EXISTS cart_items
        (cart text, sku text, items bigint NOT NULL, PRIMARY KEY (cart, sku))";
}

impl Projection for CartItems {
    fn name(&self) -> &str {
        "cart_items"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        if event.event_type() == ItemAdded::TYPE {
            let added: ItemAdded = serde_json::from_slice(event.payload())?;
            tx.execute(
                "INSERT INTO cart_items AS c VALUES ($1, $2, 1) ON CONFLICT (cart, sku) DO UPDATE SET items = c.items + 1",
                &[&event.aggregate_id(), &added.sku],
            )?;
        }
        Ok(())
    }
}

fn main() -> Result<(), BoxError> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let url = std::env::var("DATABASE_URL")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        connect(&url).await?.batch_execute(CartItems::TABLE).await?;
        // This blocks, like every call of the library. At the start, nothing else waits for this
        // thread. Later, use `spawn_blocking`, as below.
        let worker = start_worker(&url)?;
        let appended = shop(&url).await?;
        wait_until_handled(&worker, appended).await?;
        log::info!("the read model has every item up to position {appended}");
        tokio::task::spawn_blocking(move || worker.shutdown(Duration::from_secs(30))).await??;
        Ok(())
    })
}

fn start_worker(url: &str) -> Result<Handle, Error> {
    let orchestrator = Orchestrator::builder(Database::from_url(url)?, "carts").projection(CartItems).build()?;
    orchestrator.migrate()?;
    orchestrator.start()
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Lets all visitors add their items. Returns the position of the last event.
async fn shop(url: &str) -> Result<i64, BoxError> {
    let mut visitors = tokio::task::JoinSet::new();
    for visitor in 0..VISITORS {
        let url = url.to_owned();
        visitors.spawn(async move {
            let store = Store::connect(&url).await?;
            let mut last = 0;
            for _ in 0..ITEMS_OF_EACH {
                match store.add_item(CART, &format!("sku-{visitor}")).await? {
                    Some(position) => last = position,
                    None => log::info!("visitor {visitor}: {CART} is full"),
                }
            }
            Ok::<i64, BoxError>(last)
        });
    }
    let mut last = 0;
    while let Some(visitor) = visitors.join_next().await {
        last = last.max(visitor??);
    }
    Ok(last)
}

/// Waits until the worker has handled the event at this position. Then the read model shows it.
async fn wait_until_handled(worker: &Handle, position: i64) -> Result<(), BoxError> {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let handled = async {
        while worker.status().projections.values().any(|projection| projection.position < Some(position)) {
            looks.tick().await;
        }
    };
    Ok(tokio::time::timeout(Duration::from_secs(60), handled).await?)
}
