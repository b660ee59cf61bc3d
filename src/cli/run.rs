//! `run`: the worker as a service, with its metrics server.

use std::process::ExitCode;

use super::failure::Failure;
use super::migration::{apply, unless_stopped};
use super::settings::{METRICS_ADDR, OPERATOR_TOKEN, STATUS_HOSTS, STATUS_PAGE, Settings};
use super::signals::shutdown_signal;
use super::worker::Program;
use crate::http::MetricsServer;

/// What the metrics server serves, and on which address.
pub(super) struct Service {
    address: String,
    status_page: bool,
    hosts: Vec<String>,
    operator_token: Option<String>,
}

impl Service {
    pub(super) fn of(settings: &Settings) -> Result<Self, Failure> {
        Ok(Self {
            address: settings.text(METRICS_ADDR).unwrap_or("0.0.0.0:9090").to_owned(),
            status_page: settings.switch(STATUS_PAGE)?.unwrap_or(true),
            hosts: settings.text(STATUS_HOSTS).unwrap_or_default().split(',').map(str::to_owned).collect(),
            operator_token: settings.text(OPERATOR_TOKEN).map(str::to_owned),
        })
    }
}

pub(super) fn run(program: Program, service: &Service) -> Result<ExitCode, Failure> {
    let Program { orchestrator, migrations } = program;
    let shutdown = shutdown_signal()?;
    let mut server = MetricsServer::builder(orchestrator.metrics().clone())
        .status_page(service.status_page)
        .allow_hosts(service.hosts.iter().map(String::as_str))
        .watch(orchestrator.health());
    if let Some(token) = &service.operator_token {
        server = server.operator(token);
    }
    let _server = server.bind(&service.address)?;
    let start = move || {
        apply(&orchestrator, migrations)?;
        Ok(orchestrator.start()?)
    };
    // The server answers requests until the worker has left.
    if let Some(handle) = unless_stopped(&shutdown, start)? {
        handle.run_until(&shutdown)?;
    }
    Ok(ExitCode::SUCCESS)
}
