//! The place of the measurements: a server, databases with events, and the options of the command
//! line.

use std::collections::BTreeMap;
use std::time::Instant;

use postgres::Client;
use pupsourcing_orchestrator::{Builder, Database, Orchestrator};

use crate::gate::patience;
use crate::projections::{Handler, Measured};
use crate::report::Report;
use crate::support::arguments::{Arguments, number};
use crate::support::insert::insert;
use crate::support::proc::machine;
use crate::support::server::{Server, connect};

/// The default size of a worker's batch, and the size of the bare clients' batches.
pub(crate) const BATCH: i64 = 2_000;

/// The events that exist before a section appends others. On an empty table, the server would
/// choose other plans.
pub(crate) const BEFORE: Filling = Filling::of(20_000);

pub(crate) struct Lab {
    pub(crate) arguments: Arguments,
    /// The number of events of a catch-up.
    pub(crate) events: i64,
    pub(crate) rounds: usize,
    pub(crate) server: Server,
    pub(crate) report: Report,
    databases: u32,
    filled: BTreeMap<Filling, String>,
    names: u32,
}

/// The events of a database.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Filling {
    pub(crate) events: i64,
    pub(crate) payload: i32,
    /// Whether one in a hundred positions is missing.
    pub(crate) has_holes: bool,
}

impl Filling {
    pub(crate) const fn of(events: i64) -> Self {
        Self { events, payload: 200, has_holes: false }
    }

    /// The position of the last event.
    pub(crate) fn head(self) -> i64 {
        if self.has_holes { self.events + (self.events - 1) / 99 } else { self.events }
    }
}

impl Lab {
    pub(crate) fn new(arguments: Arguments) -> Self {
        let quick = arguments.quick;
        let events = number("BENCH_EVENTS").unwrap_or(if quick { 5_000 } else { 1_000_000 });
        let rounds = number("BENCH_ROUNDS").unwrap_or(if quick { 1 } else { 5 });
        let server = Server::start();
        let report = Report::new(header(&server));
        Self {
            arguments,
            events: events as i64,
            rounds,
            server,
            report,
            databases: 0,
            filled: BTreeMap::new(),
            names: 0,
        }
    }

    /// Returns one of two values: for a real measurement, or for a quick check that the bench
    /// works.
    pub(crate) fn real_or_quick<T>(&self, real: T, quick: T) -> T {
        if self.arguments.quick { quick } else { real }
    }

    /// Returns a multiple of the requested rounds. It is used if the compared values differ by less
    /// than they vary on a shared machine.
    pub(crate) fn rounds_times(&self, factor: usize) -> usize {
        self.real_or_quick(factor, 1) * self.rounds
    }

    /// Creates a database with the library's tables and those of the handlers, without events.
    /// Returns its name and URL.
    pub(crate) fn database(&mut self) -> (String, String) {
        self.databases += 1;
        let name = format!("bench_{}", self.databases);
        let url = self.server.create_database(&name);
        builder(&url, "nobody")
            .batch_projection(Measured::new("none", 0, Handler::NoOp))
            .build()
            .unwrap()
            .migrate()
            .unwrap();
        connect(&url).batch_execute(Handler::TABLES).unwrap();
        (name, url)
    }

    /// Returns the URL of a database with these events, which all callers share.
    pub(crate) fn filled(&mut self, filling: Filling) -> String {
        if let Some(url) = self.filled.get(&filling) {
            return url.clone();
        }
        let (_, url) = self.database_filled_with(filling);
        self.filled.insert(filling, url.clone());
        url
    }

    /// Creates a database with these events. Returns its name and URL.
    pub(crate) fn database_filled_with(&mut self, filling: Filling) -> (String, String) {
        let (name, url) = self.database();
        let begun = Instant::now();
        fill(&mut connect(&url), filling);
        println!("  filled in {:.1?}: {filling:?}", begun.elapsed());
        (name, url)
    }

    /// Returns a new name for a replica set and its projections.
    pub(crate) fn name(&mut self) -> String {
        self.names += 1;
        format!("run-{}", self.names)
    }
}

pub(crate) fn builder(url: &str, replica_set: &str) -> Builder {
    Orchestrator::builder(Database::from_url(url).unwrap(), replica_set).retry(patience())
}

/// Appends events to several aggregates in turn, at most five hundred to each.
fn fill(client: &mut Client, filling: Filling) {
    let Filling { events, payload, has_holes } = filling;
    let aggregates = (events / 500).max(1);
    let position = if has_holes { "1 + i + i / 99" } else { "1 + i" };
    let columns = [
        ("global_position", position),
        ("bounded_context", "'shop'"),
        ("aggregate_type", "'Order'"),
        ("aggregate_id", "'order-' || i % $2"),
        ("aggregate_version", "1 + i / $2"),
        ("event_type", "'OrderPlaced'"),
        ("payload", r#"convert_to(rpad('{"order": ' || i || ', "note": "', $3 - 2, md5(i::text)) || '"}', 'UTF8')"#),
    ];
    let sql = insert("generate_series(0, $1::bigint - 1) AS i", &columns);
    client.execute(&format!("{sql} ORDER BY i"), &[&events, &aggregates, &payload]).unwrap();
    let row = client
        .query_one(
            "SELECT setval(pg_get_serial_sequence('events', 'global_position'), max(global_position)), count(*) FROM events",
            &[],
        )
        .unwrap();
    assert_eq!((row.get(0), row.get(1)), (filling.head(), events));
    client.batch_execute("VACUUM ANALYZE events").unwrap();
}

/// Returns the conditions of the measurements, which every figure depends on.
fn header(server: &Server) -> String {
    let mut client = server.connect("postgres");
    let date: String = client.query_one("SELECT to_char(now(), 'YYYY-MM-DD HH24:MI TZ')", &[]).unwrap().get(0);
    let settings: Vec<String> = client
        .query(
            "SELECT name || ' = ' || current_setting(name) FROM pg_settings
             WHERE name IN ('fsync', 'full_page_writes', 'shared_buffers', 'track_commit_timestamp', 'shared_preload_libraries')
             ORDER BY name",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut variables: Vec<String> = std::env::vars()
        .filter(|(name, _)| name.starts_with("BENCH_"))
        .map(|(name, value)| format!("{name}={value} "))
        .collect();
    variables.sort();
    let command = format!("{}cargo bench --bench report -- {}", variables.concat(), arguments.join(" "));
    format!(
        "Machine: {}. Server: PostgreSQL {}, on the same machine, over TCP, with {}. Date: {date}. Command: `{}`.\n",
        machine(),
        server.version(),
        settings.join(", "),
        command.trim_end_matches([' ', '-'])
    )
}
