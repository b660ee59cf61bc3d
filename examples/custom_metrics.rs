//! The application's own registry and its own HTTP server: the orchestrator's metrics stand beside the application's.
//!
//! `DATABASE_URL` says where the events are, `METRICS_ADDR` where to serve (127.0.0.1:9091).

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use prometheus::{IntCounterVec, Opts, Registry, TextEncoder};
use pupsourcing_orchestrator::{BoxError, Database, Event, Metrics, Orchestrator, Projection, Tx};
use tiny_http::{Response, Server};

#[path = "support/app.rs"]
mod app;

/// Builds no read model: it counts what happens, in a metric of the application.
struct Happenings {
    seen: IntCounterVec,
}

impl Projection for Happenings {
    fn name(&self) -> &'static str {
        "happenings"
    }

    fn handle(&self, _: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        // Outside the transaction: after a rollback the event is handled, and counted, again.
        self.seen.with_label_values(&[event.event_type()]).inc();
        Ok(())
    }
}

fn main() -> ExitCode {
    app::main(run)
}

fn run() -> Result<(), BoxError> {
    let database = Database::from_url(&app::database_url()?)?;
    let address = app::setting("METRICS_ADDR")?.unwrap_or_else(|| "127.0.0.1:9091".into());

    let registry = Registry::new();
    let seen = IntCounterVec::new(Opts::new("shop_happenings_total", "Events seen, by type"), &["event_type"])?;
    registry.register(Box::new(seen.clone()))?;
    let orchestrator = Orchestrator::builder(database, "custom-metrics")
        .projection(Happenings { seen })
        .metrics(Metrics::in_registry(&registry)?)
        .build()?;
    orchestrator.migrate()?;

    let server = Arc::new(Server::http(&address).map_err(|e| app::Wrong(format!("METRICS_ADDR is {address:?}: {e}")))?);
    log::info!("metrics: http://{}/metrics", server.server_addr());
    let scraped = server.clone();
    let http = thread::Builder::new().name("http".into()).spawn(move || serve(&scraped, &registry))?;

    orchestrator.run(&app::shutdown_signal()?)?;
    server.unblock();
    http.join().map_err(|_| "the HTTP thread panicked")?;
    Ok(())
}

fn serve(server: &Server, registry: &Registry) {
    for request in server.incoming_requests() {
        let response = match TextEncoder::new().encode_to_string(&registry.gather()) {
            Ok(text) => Response::from_string(text),
            Err(error) => Response::from_string(error.to_string()).with_status_code(500),
        };
        if let Err(error) = request.respond(response) {
            log::debug!("a scraper went away: {error}");
        }
    }
}
