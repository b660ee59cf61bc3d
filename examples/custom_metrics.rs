//! An application with its own registry and its own HTTP server. The orchestrator's metrics are in
//! the application's registry, and the application's server answers for its health and status.
//!
//! `DATABASE_URL` names the database that has the events, and `METRICS_ADDR` the address to serve
//! on (127.0.0.1:9091 by default).
//!
//! `/status` shows hosts and projections. The library's own server refuses it under foreign host
//! names, so that no page of another site can read it. This server does not.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use prometheus::{IntCounterVec, Opts, Registry, TextEncoder};
use pupsourcing_orchestrator::{
    BoxError, Database, Event, HealthProbe, Metrics, Orchestrator, Projection, Tx, Unhealthy,
};
use tiny_http::{Response, Server};

#[path = "support/app.rs"]
mod app;

/// Counts events in a metric of the application. It builds no read model.
struct Happenings {
    seen: IntCounterVec,
}

impl Projection for Happenings {
    fn name(&self) -> &'static str {
        "happenings"
    }

    fn handle(&self, _: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        // This effect is outside the transaction: after a rollback, the event is handled and
        // counted again.
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
    let server = Arc::new(Server::http(&address).map_err(|e| app::Wrong(format!("METRICS_ADDR is {address:?}: {e}")))?);
    log::info!("metrics: http://{}/metrics", server.server_addr());
    let (listener, probe) = (server.clone(), orchestrator.health());
    let http = thread::Builder::new().name("http".into()).spawn(move || serve(&listener, &registry, &probe))?;

    // The probes answer even while the worker waits for the database.
    orchestrator.migrate()?;
    orchestrator.run(&app::shutdown_signal()?)?;
    server.unblock();
    http.join().map_err(|_| "the HTTP thread panicked")?;
    Ok(())
}

fn serve(server: &Server, registry: &Registry, probe: &HealthProbe) {
    for request in server.incoming_requests() {
        let path = request.url().split('?').next().unwrap_or_default();
        let (code, body) = match path {
            "/metrics" => match TextEncoder::new().encode_to_string(&registry.gather()) {
                Ok(text) => (200, text),
                Err(error) => (500, error.to_string()),
            },
            "/livez" => health(probe.live()),
            "/readyz" => health(probe.ready()),
            "/status" => (200, probe.status().to_string()),
            _ => (404, "no such path".to_owned()),
        };
        if let Err(error) = request.respond(Response::from_string(body).with_status_code(code)) {
            log::debug!("a client went away: {error}");
        }
    }
}

fn health(answer: Result<(), Unhealthy>) -> (u16, String) {
    match answer {
        Ok(()) => (200, "ok".to_owned()),
        Err(reason) => (503, reason.to_string()),
    }
}
