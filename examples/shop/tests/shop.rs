//! The command, the read models and the receipts, on a private PostgreSQL.

use pupsourcing_orchestrator::{BoxError, Fold, testing::Scenario};
use shop::{Order, OrderEvent, Orders, Receipts, TABLES, ToShip, order, pay};

#[test]
fn an_order_is_paid_once_and_everything_shows_it() -> Result<(), BoxError> {
    let (sender, sent) = std::sync::mpsc::channel();
    let send = move |address: &str, _: &str| Ok(sender.send(address.to_owned())?);
    let mut shop = Scenario::new(TABLES)?.projection(ToShip).fold(Orders).reaction(Receipts(send));
    for id in ["order-1", "order-2"] {
        shop.given(&order(id), [OrderEvent::OrderPlaced { product: "pen".into(), cents: 150 }])?;
    }
    let database = shop.database();
    let is_paid = || pay(&mut database.client().unwrap(), "order-1", "Main Street 1").is_ok();
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(is_paid);
        (is_paid(), other.join().unwrap())
    });
    assert_ne!(first, second, "one of two payments is refused");

    shop.run_to_end()?;
    assert_eq!(Orders.get(shop.client(), "order-1")?, Some(Order::Paid));
    assert_eq!(Orders.get(shop.client(), "order-2")?, Some(Order::Placed));
    assert_eq!(sent.try_iter().collect::<Vec<_>>(), ["Main Street 1"]);
    let to_ship = shop.client().query_one("SELECT address FROM to_ship", &[])?;
    assert_eq!(to_ship.get::<_, &str>(0), "Main Street 1");
    Ok(shop.check_partitioning().tables(["orders", "to_ship"]).ignoring(["updated_at"]).run()?)
}
