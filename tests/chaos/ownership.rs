//! Which worker owns which keys, and for how long a key had no owner that could work.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};

/// The keys of each projection that are not owned by a running worker in one of these processes. No
/// worker owns those of former tables.
const UNOWNED: &str = "
    SELECT p.name, lower(piece), upper(piece)
    FROM orchestrator_projections p, unnest('{[0,65536)}'::int4multirange - coalesce((
        SELECT range_agg(owned)
        FROM orchestrator_checkpoints c
        JOIN orchestrator_workers w ON w.id = c.worker_id AND w.generation = c.generation
        JOIN orchestrator_generations g ON g.number = c.generation AND g.replica_set = w.replica_set,
             unnest(c.keys) AS owned
        WHERE c.projection = p.name AND w.state = 'running' AND g.state = 'active' AND w.pid = ANY ($1)), '{}')) AS piece
    WHERE p.kind <> 'old'";

const KEYS: usize = 1 << 16;

pub(crate) struct Ownership {
    url: String,
    client: Option<Client>,
    /// Since when each key of a projection has been seen unowned.
    since: BTreeMap<String, Vec<Option<Instant>>>,
    longest: Duration,
}

impl Ownership {
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), client: None, since: BTreeMap::new(), longest: Duration::ZERO }
    }

    /// The keys that none of these processes owns. `None` if the server does not answer: then the
    /// workers are not to blame, and the times counted so far are forgotten.
    pub(crate) fn look(&mut self, capable: &[i32]) -> Option<Vec<(String, Range<i32>)>> {
        let url = &self.url;
        let client =
            self.client.take().filter(|client| !client.is_closed()).or_else(|| Client::connect(url, NoTls).ok());
        let unowned: Option<Vec<(String, Range<i32>)>> = client.and_then(|mut client| {
            let rows = client.query(UNOWNED, &[&capable]).ok()?;
            self.client = Some(client);
            Some(rows.iter().map(|row| (row.get(0), row.get(1)..row.get(2))).collect())
        });
        match &unowned {
            Some(unowned) => self.count(unowned, Instant::now()),
            None => self.since.clear(),
        }
        unowned
    }

    /// The longest time for which a key was seen unowned, in consecutive looks.
    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }

    fn count(&mut self, unowned: &[(String, Range<i32>)], now: Instant) {
        let before = std::mem::take(&mut self.since);
        for (projection, keys) in unowned {
            let since = self.since.entry(projection.clone()).or_insert_with(|| vec![None; KEYS]);
            for key in keys.clone() {
                let key = usize::try_from(key).unwrap();
                let begun = before.get(projection).and_then(|since| since[key]).unwrap_or(now);
                since[key] = Some(begun);
                self.longest = self.longest.max(now - begun);
            }
        }
    }
}

/// Whether exactly these processes run in the newest generation.
pub(crate) fn all_take_part(client: &mut Client, pids: &[i32]) -> bool {
    let sql = "SELECT state = 'active' AND total_partitions = cardinality($1::int[]) AND total_partitions =
                      (SELECT count(*) FROM orchestrator_workers w
                       WHERE w.generation = number AND w.state = 'running' AND w.pid = ANY ($1))
               FROM orchestrator_generations ORDER BY number DESC LIMIT 1";
    client.query_one(sql, &[&pids]).unwrap().get(0)
}

/// Describes the state, for when nothing progresses.
pub(crate) fn situation(client: &mut Client) -> String {
    let sql = "SELECT format('worker %s', w) FROM orchestrator_workers w WHERE state <> 'stopped'
               UNION ALL (SELECT format('generation %s', g) FROM orchestrator_generations g ORDER BY number DESC LIMIT 3)
               UNION ALL SELECT format('projection %s', p) FROM orchestrator_projections p
               UNION ALL SELECT format('command %s', k) FROM orchestrator_commands k WHERE applied_at IS NULL
               UNION ALL SELECT format('checkpoint %s', c) FROM orchestrator_checkpoints c
               UNION ALL SELECT format('session %s %s %s blocked by %s: %s %s', pid, application_name, state, pg_blocking_pids(pid), xact_start, left(query, 150))
                         FROM pg_stat_activity WHERE datname = current_database()";
    let lines: Vec<String> = client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    lines.join("\n")
}

#[test]
fn a_key_is_unowned_from_the_first_look_to_the_last() {
    let mut ownership = Ownership::new("");
    let begun = Instant::now();
    let mut look = |milliseconds, keys: &[(&str, Range<i32>)]| {
        let unowned: Vec<_> = keys.iter().map(|(name, keys)| ((*name).to_owned(), keys.clone())).collect();
        ownership.count(&unowned, begun + Duration::from_millis(milliseconds));
        ownership.longest().as_millis()
    };
    assert_eq!(look(0, &[("p", 0..10)]), 0);
    assert_eq!(look(100, &[("p", 9..20), ("q", 0..65_536)]), 100, "key 9 of p");
    assert_eq!(look(190, &[("p", 10..20), ("q", 5..6)]), 100, "90 ms of others");
    assert_eq!(look(200, &[]), 100);
    assert_eq!(look(900, &[("q", 5..6)]), 100, "it had an owner in between");
    assert_eq!(look(1_050, &[("q", 5..6)]), 150);
}
