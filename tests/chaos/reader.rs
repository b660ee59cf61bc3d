//! A reader that holds its snapshots for long: no read model may ever go back for it (I11).

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use postgres::{Client, IsolationLevel, NoTls};

/// How long it holds a snapshot before it reads the read models, at most.
const HOLDS: Duration = Duration::from_secs(3);

/// How many commands have set a read model back.
const SET_BACK: &str = "SELECT count(*) FROM orchestrator_commands WHERE command IN ('rewind', 'revert', 'remove')
    AND (step = 'executed' OR outcome = 'done')";

/// What each of the read models contains. None of them is mentioned before the snapshot is old.
const TOTALS: [&str; 3] = [
    "SELECT coalesce(sum(events), 0)::int8 FROM event_type_counts",
    "SELECT coalesce(sum(events), 0)::int8 FROM aggregate_activity",
    "SELECT coalesce(sum(version), 0)::int8 FROM shared_sums",
];

pub(crate) struct Reader {
    stop: Sender<()>,
    thread: JoinHandle<u32>,
}

impl Reader {
    pub(crate) fn start(url: &str) -> Self {
        let (stop, stopped) = bounded(0);
        let url = url.to_owned();
        let thread = thread::Builder::new().name("reader".into()).spawn(move || read(&url, &stopped)).unwrap();
        Self { stop, thread }
    }

    /// Returns how often it has read. Panics if a read model went back.
    pub(crate) fn finish(self) -> u32 {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

fn read(url: &str, stop: &Receiver<()>) -> u32 {
    let (mut reads, mut client) = (0, None);
    let mut last: Option<(i64, [i64; 3])> = None;
    loop {
        let holds = HOLDS.mul_f64(fastrand::f64().powi(3));
        client = client.filter(|client: &Client| !client.is_closed()).or_else(|| Client::connect(url, NoTls).ok());
        let seen = client.as_mut().map(|client| {
            let before = client.query_one(SET_BACK, &[])?.get::<_, i64>(0);
            let mut tx =
                client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start()?;
            tx.batch_execute("SELECT FROM pg_class LIMIT 1")?;
            let stops = stop.recv_timeout(holds) != Err(RecvTimeoutError::Timeout);
            let mut totals = [0; 3];
            for (total, sql) in totals.iter_mut().zip(TOTALS) {
                *total = tx.query_one(sql, &[])?.get(0);
            }
            tx.commit()?;
            let after = client.query_one(SET_BACK, &[])?.get::<_, i64>(0);
            Ok::<_, postgres::Error>((before, after, totals, stops))
        });
        match seen {
            // The server is away, a lock was not free, or a neighbour has hidden the tables.
            None | Some(Err(_)) => {
                if stop.recv_timeout(Duration::from_millis(100)) != Err(RecvTimeoutError::Timeout) {
                    return reads;
                }
            }
            Some(Ok((before, after, totals, stops))) => {
                let known = last.filter(|(set_back, _)| *set_back == after && before == after);
                if let Some((_, earlier)) = known {
                    let is_back = totals.iter().zip(earlier).any(|(now, earlier)| *now < earlier);
                    assert!(!is_back, "a reader saw {earlier:?}, and later {totals:?}");
                }
                // A snapshot of before the latest one may show less than that one did.
                last = (before == after).then_some((after, totals));
                reads += 1;
                if stops {
                    return reads;
                }
            }
        }
    }
}
