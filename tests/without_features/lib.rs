//! Tests the library without its features, on a real server.
#![cfg(test)]

use std::time::{Duration, Instant};

use pupsourcing_orchestrator::postgres::{Client, NoTls};
use pupsourcing_orchestrator::testing::Postgres;
use pupsourcing_orchestrator::{
    BoxError, Database, Error, Event, EventStore, ExpectedVersion, NewEvent, Orchestrator, Projection, StreamId, Tx,
};

const SOON: Duration = Duration::from_secs(30);
const EVENTS: i64 = 100;

struct Counted;

impl Projection for Counted {
    fn name(&self) -> &str {
        "counted"
    }

    fn handle(&self, tx: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
        tx.execute("UPDATE counted SET events = events + 1", &[])?;
        Ok(())
    }
}

#[test]
fn a_projection_runs_and_its_probe_answers() {
    let server = Postgres::start().unwrap();
    let database = Database::from_url(&server.create_database("shop").unwrap()).unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute("CREATE TABLE counted AS SELECT 0::bigint AS events").unwrap();
    let orchestrator = Orchestrator::builder(database, "set").projection(Counted).build().unwrap();
    orchestrator.migrate().unwrap();
    let handle = orchestrator.start().unwrap();
    for id in 0..EVENTS {
        let order = StreamId::new("shop", "Order", format!("order-{id}"));
        let placed = NewEvent::new("OrderPlaced", []);
        EventStore::default().append(&mut client, &order, ExpectedVersion::NoStream, &[placed]).unwrap();
    }
    let deadline = Instant::now() + SOON;
    while client.query_one("SELECT events FROM counted", &[]).unwrap().get::<_, i64>(0) < EVENTS {
        assert!(Instant::now() < deadline, "{:?}", handle.status());
    }
    let probe = handle.health();
    probe.live().unwrap();
    probe.ready().unwrap();
    assert!(probe.status().to_string().contains("\"counted\""));
    handle.shutdown(SOON).unwrap();
    assert!(probe.ready().unwrap_err().to_string().ends_with("the worker is stopping"));
}

#[test]
fn sslmodes_that_require_tls_are_refused_by_name() {
    let url = "postgres://user:secret@localhost/shop?sslmode=";
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = Database::from_url(&format!("{url}{mode}")).unwrap_err();
        assert!(matches!(error, Error::Tls { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&format!("sslmode={mode}")) && text.contains("enable its feature \"tls\""), "{text}");
    }
}

#[test]
fn sslmodes_that_do_not_require_tls_connect() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("shop").unwrap();
    for mode in ["", "sslmode=disable", "sslmode=prefer"] {
        Database::from_url(&format!("{url}?{mode}")).unwrap().connect().unwrap();
    }
    Database::with_connector(url.parse().unwrap(), NoTls).connect().unwrap();
    Client::connect(&url, NoTls).unwrap();
}
