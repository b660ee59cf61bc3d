//! The command and the read models, on a private PostgreSQL.

use pupsourcing_orchestrator::{BoxError, testing::Scenario};
use shop::{OrderEvent, Orders, Products, TABLES, ToShip, order, pay};

#[test]
fn an_order_is_paid_once_and_the_read_models_show_it() -> Result<(), BoxError> {
    let mut shop = Scenario::new(TABLES)?.projection(Orders).batch_projection(Products).projection(ToShip);
    for (id, product) in [("order-1", "pen"), ("order-2", "ink"), ("order-3", "pen")] {
        shop.given(&order(id), [OrderEvent::OrderPlaced { product: product.into(), cents: 150 }])?;
    }
    let database = shop.database();
    let is_paid = || pay(&mut database.client().unwrap(), "order-1", "Main Street 1").is_ok();
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(is_paid);
        (is_paid(), other.join().unwrap())
    });
    assert_ne!(first, second, "one of two payments is refused");

    shop.run_to_end()?;
    let sql = "SELECT is_paid, orders FROM orders JOIN products ON name = 'pen' WHERE id = 'order-1'";
    let row = shop.client().query_one(sql, &[])?;
    assert_eq!((row.get(0), row.get(1)), (true, 2_i64));
    Ok(shop.check_partitioning().tables(["orders", "products", "to_ship"]).run()?)
}
