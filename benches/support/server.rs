//! A private PostgreSQL that counts its statements and records the times of its commits.

use postgres::{Client, NoTls};

use pupsourcing_orchestrator::testing::Postgres;

#[derive(Debug)]
pub(crate) struct Server {
    postgres: Postgres,
    counts_statements: bool,
}

impl Server {
    pub(crate) fn start() -> Self {
        let options = Postgres::options().setting("max_connections", "500").setting("track_commit_timestamp", "on");
        let counting = options.clone().setting("shared_preload_libraries", "pg_stat_statements");
        // The extension comes with the server, but not in every distribution's package.
        let (postgres, counts_statements) =
            counting.start().map_or_else(|_| (options.start().unwrap(), false), |server| (server, true));
        let server = Self { postgres, counts_statements };
        if counts_statements {
            server.connect("postgres").batch_execute("CREATE EXTENSION pg_stat_statements").unwrap();
        }
        server
    }

    /// Creates a database, and returns its URL.
    pub(crate) fn create_database(&self, name: &str) -> String {
        self.postgres.create_database(name).unwrap()
    }

    pub(crate) fn drop_database(&self, name: &str) {
        self.connect("postgres").batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).unwrap();
    }

    pub(crate) fn connect(&self, database: &str) -> Client {
        connect(&self.postgres.url(database))
    }

    pub(crate) fn version(&self) -> String {
        self.connect("postgres").query_one("SHOW server_version", &[]).unwrap().get(0)
    }

    /// The process id of the postmaster.
    pub(crate) fn pid(&self) -> u32 {
        self.postgres.pid()
    }

    /// Adds the time of planning to what is counted in a database, for the sessions that are opened
    /// from now on.
    pub(crate) fn count_planning(&self, database: &str) {
        if self.counts_statements {
            let sql = format!("ALTER DATABASE {database} SET pg_stat_statements.track_planning = on");
            self.connect("postgres").batch_execute(&sql).unwrap();
        }
    }

    /// Counts the statements in a database from now on; `None` if the server lacks the extension.
    pub(crate) fn count_statements(&self, database: &str) -> Option<Statements> {
        self.counts_statements.then(|| {
            let mut client = self.connect("postgres");
            client.execute("SELECT pg_stat_statements_reset()", &[]).unwrap();
            Statements { client, database: database.to_owned() }
        })
    }
}

pub(crate) fn connect(url: &str) -> Client {
    Client::connect(url, NoTls).unwrap()
}

/// The statements that the server counted in a database. They are read from another database.
pub(crate) struct Statements {
    client: Client,
    database: String,
}

/// The totals of some statements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) calls: f64,
    /// How long the server executed them, and planned them if that is counted.
    pub(crate) seconds: f64,
    pub(crate) rows: f64,
}

impl Count {
    /// The value if the server does not count.
    pub(crate) const UNKNOWN: Self = Self { calls: f64::NAN, seconds: f64::NAN, rows: f64::NAN };

    pub(crate) fn per(self, seconds: f64) -> Self {
        Self { calls: self.calls / seconds, seconds: self.seconds / seconds, rows: self.rows / seconds }
    }
}

impl Statements {
    /// Returns the totals of the statements whose text matches this regular expression.
    pub(crate) fn matching(&mut self, pattern: &str) -> Count {
        let row = self
            .client
            .query_one(
                "SELECT coalesce(sum(calls), 0)::float8, coalesce(sum(total_exec_time + total_plan_time), 0)::float8 / 1000,
                        coalesce(sum(rows), 0)::float8
                 FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = $1) AND query ~ $2",
                &[&self.database, &pattern],
            )
            .unwrap();
        Count { calls: row.get(0), seconds: row.get(1), rows: row.get(2) }
    }

    /// Returns the most frequent texts, shortened, and how often per second each was executed.
    pub(crate) fn most_frequent(&mut self, seconds: f64) -> Vec<(String, f64)> {
        let rows = self
            .client
            .query(
                "SELECT left(regexp_replace(query, '\\s+', ' ', 'g'), 100), sum(calls)::float8 / $2 FROM pg_stat_statements
                 WHERE dbid = (SELECT oid FROM pg_database WHERE datname = $1) GROUP BY 1 ORDER BY 2 DESC LIMIT 12",
                &[&self.database, &seconds],
            )
            .unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    pub(crate) fn all(&mut self) -> Count {
        self.matching("")
    }
}
