//! Readers of a read model of two tables, who read all the time: each sees the former or the new
//! one, and never less than a reader before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postgres::{Client, GenericClient, NoTls, SimpleQueryMessage};
use pupsourcing_orchestrator::{BoxError, Event, Projection, Tx};

/// A read model of two tables: one row for each event, and one for each aggregate.
pub(crate) struct Pair;

impl Pair {
    /// Creates the tables, and the functions through which some readers read.
    pub(crate) fn create(client: &mut Client) {
        client
            .batch_execute(&format!(
                "CREATE TABLE pair_events (global_position bigint PRIMARY KEY, aggregate_id text NOT NULL, damage int NOT NULL DEFAULT 0);
                 CREATE TABLE pair_sums (aggregate_id text PRIMARY KEY, events bigint NOT NULL, damage int NOT NULL DEFAULT 0);
                 CREATE FUNCTION pair_sql() RETURNS bigint[] STABLE LANGUAGE sql AS $$ {SEEN} $$;
                 CREATE FUNCTION pair_plpgsql() RETURNS bigint[] STABLE LANGUAGE plpgsql AS $$
                 DECLARE event pair_events%ROWTYPE; total pair_sums; n bigint; damaged bigint; sum bigint := 0; of_sum bigint := 0;
                 BEGIN
                     SELECT count(*), coalesce(max(damage), 0) INTO n, damaged FROM pair_events;
                     PERFORM pg_sleep(0.02 * random());
                     SELECT * INTO event FROM pair_events LIMIT 1;
                     FOR total IN SELECT * FROM pair_sums LOOP
                         sum := sum + total.events; of_sum := greatest(of_sum, total.damage);
                     END LOOP;
                     RETURN ARRAY[n, sum, damaged, of_sum];
                 END $$"
            ))
            .unwrap();
    }

    /// Damages each row of both tables.
    pub(crate) fn damage(client: &mut Client) {
        client
            .batch_execute("UPDATE pair_events SET damage = 1; UPDATE pair_sums SET damage = 1, events = events + 0")
            .unwrap();
    }

    pub(crate) fn boxed() -> Box<dyn Projection> {
        Box::new(Self)
    }
}

/// What a reader sees in one statement: the number of events, by each of the tables, and whether
/// each is damaged.
const SEEN: &str = "SELECT ARRAY[(SELECT count(*) FROM pair_events), (SELECT coalesce(sum(events), 0)::bigint FROM pair_sums),
                                 (SELECT coalesce(max(damage), 0) FROM pair_events), (SELECT coalesce(max(damage), 0) FROM pair_sums)]";

impl Projection for Pair {
    fn name(&self) -> &str {
        "pair"
    }

    fn tables(&self) -> &[&str] {
        &["pair_events", "pair_sums"]
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        let id = event.aggregate_id();
        tx.execute("INSERT INTO pair_events VALUES ($1, $2)", &[&event.global_position(), &id])?;
        let sum = "INSERT INTO pair_sums VALUES ($1, 1) ON CONFLICT (aggregate_id) DO UPDATE SET events = pair_sums.events + 1";
        tx.execute(sum, &[&id])?;
        Ok(())
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        tx.execute("DELETE FROM pair_events WHERE global_position > $1", &[&to])?;
        tx.execute("DELETE FROM pair_sums", &[])?;
        tx.execute("INSERT INTO pair_sums SELECT aggregate_id, count(*) FROM pair_events GROUP BY 1", &[])?;
        Ok(())
    }
}

/// How a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Simple,
    Prepared,
    Generic,
    /// With a snapshot that it has taken before.
    Snapshot,
    SqlFunction,
    PlpgsqlFunction,
    Cursor,
}

impl Way {
    pub(crate) const ALL: [Self; 7] = [
        Self::Simple,
        Self::Prepared,
        Self::Generic,
        Self::Snapshot,
        Self::SqlFunction,
        Self::PlpgsqlFunction,
        Self::Cursor,
    ];
}

/// Readers, each in a thread of its own.
pub(crate) struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Read>>,
}

/// What any of them has seen.
#[derive(Default)]
struct Seen {
    events: AtomicI64,
    is_repaired: AtomicBool,
}

/// What a reader has read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read {
    pub(crate) way: Way,
    pub(crate) times: usize,
    pub(crate) damaged: usize,
    /// The longest time for one statement, without the time for which it was to wait.
    pub(crate) longest: Duration,
}

impl Readers {
    pub(crate) fn start(url: &str, ways: &[Way]) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let threads = ways.iter().map(|&way| {
            let client = Client::connect(url, NoTls).unwrap();
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            thread::spawn(move || read(way, client, &stop, &seen))
        });
        Self { threads: threads.collect(), stop }
    }

    /// Ends them, and returns what they have read. Panics if one has seen what it must not see.
    #[track_caller]
    pub(crate) fn stop(self) -> Vec<Read> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

fn read(way: Way, mut client: Client, stop: &AtomicBool, all: &Seen) -> Read {
    let mut read = Read { way, times: 0, damaged: 0, longest: Duration::ZERO };
    if way == Way::Generic {
        client.batch_execute("SET plan_cache_mode = force_generic_plan").unwrap();
    }
    let prepared = client.prepare(SEEN).unwrap();
    let tick = crossbeam_channel::tick(Duration::from_millis(50));
    while !stop.load(Ordering::SeqCst) {
        tick.recv().unwrap();
        // Whatever was seen before its snapshot was taken, it has to see as well.
        let (least, is_repaired) = (all.events.load(Ordering::SeqCst), all.is_repaired.load(Ordering::SeqCst));
        let mut timed = |client: &mut dyn FnMut() -> Vec<i64>| {
            let begun = Instant::now();
            let seen = client();
            read.longest = read.longest.max(begun.elapsed());
            seen
        };
        let seen = match way {
            Way::Simple => timed(&mut || by_simple_query(&mut client)),
            Way::Prepared | Way::Generic => timed(&mut || client.query_one(&prepared, &[]).unwrap().get(0)),
            Way::SqlFunction => timed(&mut || client.query_one("SELECT pair_sql()", &[]).unwrap().get(0)),
            Way::PlpgsqlFunction => timed(&mut || client.query_one("SELECT pair_plpgsql()", &[]).unwrap().get(0)),
            Way::Snapshot => {
                let mut tx = client.build_transaction();
                tx = tx.isolation_level(postgres::IsolationLevel::RepeatableRead);
                let mut tx = tx.start().unwrap();
                tx.query_one("SELECT pg_sleep(1.5 * random())::text", &[]).unwrap();
                timed(&mut || tx.query_one(SEEN, &[]).unwrap().get(0))
            }
            Way::Cursor => {
                let mut tx = client.transaction().unwrap();
                timed(&mut || by_cursor(&mut tx))
            }
        };
        let [events, sum, damage, damage_of_sum] = seen[..] else { panic!("{seen:?}") };
        assert_eq!((events, damage), (sum, damage_of_sum), "{way:?} has seen a mixture");
        assert!(events >= least, "{way:?} has seen {events} events, after {least} were seen");
        assert!(!(is_repaired && damage == 1), "{way:?} has seen the former read model, after the new one was seen");
        all.events.fetch_max(events, Ordering::SeqCst);
        if damage == 0 && read.damaged > 0 {
            all.is_repaired.store(true, Ordering::SeqCst);
        }
        read.times += 1;
        read.damaged += usize::from(damage == 1);
    }
    read
}

fn by_simple_query(client: &mut Client) -> Vec<i64> {
    let messages = client.simple_query(SEEN).unwrap();
    let text = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let text = text.unwrap().trim_matches(['{', '}']);
    text.split(',').map(|number| number.parse().unwrap()).collect()
}

fn by_cursor(tx: &mut impl GenericClient) -> Vec<i64> {
    tx.batch_execute(
        "DECLARE pair CURSOR FOR SELECT 1::bigint, 0::bigint, damage FROM pair_events
         UNION ALL SELECT 0, events, damage FROM pair_sums",
    )
    .unwrap();
    let (mut events, mut sum, mut damage) = (0, 0, [0, 0]);
    loop {
        let rows = tx.query("FETCH 1000 FROM pair", &[]).unwrap();
        if rows.is_empty() {
            return vec![events, sum, damage[0], damage[1]];
        }
        for row in rows {
            let (event, of_sum, damaged): (i64, i64, i32) = (row.get(0), row.get(1), row.get(2));
            events += event;
            sum += of_sum;
            let which = usize::from(event == 0);
            damage[which] = damage[which].max(damaged.into());
        }
    }
}
