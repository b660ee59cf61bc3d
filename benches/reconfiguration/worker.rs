//! The program of a worker process.

use pupsourcing_orchestrator::{BatchProjection, BoxError, Database, Event, Metrics, Orchestrator, Tx};

use crate::support::app::shutdown_signal;
use crate::support::series;

pub(crate) const REPLICA_SET: &str = "bench";
pub(crate) const PROJECTIONS: [&str; 2] = ["first", "second"];

/// Runs a worker until it is told to leave.
pub(crate) fn work(url: &str) {
    let leave = shutdown_signal().unwrap();
    let metrics = Metrics::new().unwrap();
    let errors = env_logger::Builder::from_default_env().build();
    log::set_max_level(log::LevelFilter::Info);
    log::set_boxed_logger(Box::new(Reporter { metrics: metrics.clone(), errors })).unwrap();
    orchestrator(url, metrics).run(&leave).unwrap();
}

/// A logger that prints a report as soon as the library logs that the worker processes again.
struct Reporter {
    metrics: Metrics,
    /// Writes the log that `RUST_LOG` asks for, or errors only.
    errors: env_logger::Logger,
}

impl log::Log for Reporter {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        if text.starts_with("processing: ") {
            let field =
                |name| text.split(' ').find_map(|field| field.strip_prefix(name)).expect("it is in the message");
            println!("{} {} {}", field("generation="), field("of="), self.paused());
        }
        if self.errors.matches(record) {
            self.errors.log(record);
        }
    }

    fn flush(&self) {
        self.errors.flush();
    }
}

impl Reporter {
    /// The sum of all pauses, in seconds.
    fn paused(&self) -> f64 {
        let sums = series::values(&series::text(&self.metrics), "coordination_duration_seconds_sum", &[]);
        sums.first().copied().expect("the pause has been measured")
    }
}

pub(crate) fn orchestrator(url: &str, metrics: Metrics) -> Orchestrator {
    let builder = Orchestrator::builder(Database::from_url(url).unwrap(), REPLICA_SET).metrics(metrics);
    PROJECTIONS.into_iter().fold(builder, |builder, name| builder.batch_projection(Arrivals(name))).build().unwrap()
}

/// Records, for the first event of each transaction, when it was appended and when it was handled.
struct Arrivals(&'static str);

impl BatchProjection for Arrivals {
    fn name(&self) -> &str {
        self.0
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let pid = i32::try_from(std::process::id())?;
        tx.execute(
            "INSERT INTO handled VALUES ($1, $2, $3, clock_timestamp())",
            &[&pid, &self.0, &events.first().map(Event::created_at)],
        )?;
        Ok(events.len())
    }
}
