//! The neighbour: an administrator who maintains the tables and changes settings while everything
//! runs.
//!
//! The neighbour is a thread that executes orders one after the other, each on a connection of its
//! own. An order may fail because a lock is not available or because the server is away. In both
//! cases the thread remembers what the order may have changed, until that is undone.

use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, unbounded};
use postgres::{Client, NoTls};

use crate::deeds::{self, Deed};

/// How long it waits for a lock. This is less than the library's own limit, because everything else
/// queues behind the neighbour meanwhile.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take to undo everything, once the server is there. Frozen workers and open
/// transactions of writers hold locks until they are ended, and an attempt may take as long as
/// `LOCK_TIMEOUT`.
const UNDONE_WITHIN: Duration = Duration::from_secs(30);

/// The pause between two attempts to undo something.
const UNDO_PAUSE: Duration = Duration::from_millis(50);

/// How often each kind of deed was tried and how often it succeeded.
pub(crate) type Tally = BTreeMap<String, Count>;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) tried: u32,
    pub(crate) done: u32,
}

pub(crate) struct Neighbour {
    orders: Sender<Order>,
    /// The receiving end of `orders`, to take back orders that have not begun.
    queue: Receiver<Order>,
    calmed: Receiver<Result<(), String>>,
    thread: JoinHandle<Tally>,
}

enum Order {
    Do(Deed),
    Undo(Deed),
    UndoAll,
}

impl Neighbour {
    pub(crate) fn start(url: &str) -> Self {
        let mut client = Client::connect(url, NoTls).unwrap();
        for sql in deeds::preparation() {
            client.batch_execute(&sql).unwrap();
        }
        let (orders, queue) = unbounded();
        let (sender, calmed) = bounded(1);
        let at_work = AtWork { url: url.to_owned(), standing: Vec::new(), tally: Tally::new() };
        let received = queue.clone();
        let thread = thread::Builder::new().name("neighbour".into());
        let thread = thread.spawn(move || at_work.run(&received, &sender)).unwrap();
        Self { orders, queue, calmed, thread }
    }

    /// Orders a deed. Returns at once.
    pub(crate) fn order(&self, deed: Deed) {
        self.orders.send(Order::Do(deed)).unwrap();
    }

    /// Orders the neighbour to undo a deed. Returns at once.
    pub(crate) fn undo(&self, deed: Deed) {
        self.orders.send(Order::Undo(deed)).unwrap();
    }

    /// Takes back all orders, and waits until everything is undone. The server must be running.
    pub(crate) fn calm(&self) {
        self.queue.try_iter().for_each(drop);
        self.orders.send(Order::UndoAll).unwrap();
        self.calmed.recv_timeout(2 * UNDONE_WITHIN).unwrap().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Waits until it has executed its orders.
    pub(crate) fn finish(self) -> Tally {
        drop(self.orders);
        self.thread.join().unwrap()
    }
}

struct AtWork {
    url: String,
    /// What may have been done and is not undone yet.
    standing: Vec<Deed>,
    tally: Tally,
}

impl AtWork {
    fn run(mut self, orders: &Receiver<Order>, calmed: &Sender<Result<(), String>>) -> Tally {
        for deed in deeds::all() {
            self.tally.entry(deed.kind()).or_default();
        }
        for order in orders {
            match order {
                Order::Do(deed) => self.carry_out(deed),
                // If this fails, `UndoAll` undoes the deed later.
                Order::Undo(deed) => _ = self.undo(deed),
                Order::UndoAll => _ = calmed.send(self.undo_all()),
            }
        }
        self.tally
    }

    fn carry_out(&mut self, deed: Deed) {
        if !deed.undoing().is_empty() {
            self.standing.push(deed);
        }
        let begun = Instant::now();
        let outcome = execute(&self.url, deed, &deed.statements());
        let count = self.tally.entry(deed.kind()).or_default();
        count.tried += 1;
        match outcome {
            Ok(()) => count.done += 1,
            Err(error) => println!("the neighbour could not after {:?}: {deed:?}: {error}", begun.elapsed()),
        }
    }

    /// Undoes a deed, if it still stands.
    fn undo(&mut self, deed: Deed) -> Result<(), String> {
        if self.standing.contains(&deed) {
            execute(&self.url, deed, &deed.undoing())?;
            self.standing.retain(|standing| *standing != deed);
        }
        Ok(())
    }

    fn undo_all(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + UNDONE_WITHIN;
        while let Some(deed) = self.standing.last().copied() {
            match self.undo(deed) {
                Err(error) if Instant::now() > deadline => {
                    return Err(format!(
                        "the neighbour could not undo {deed:?} within {UNDONE_WITHIN:?}: {error}\n{}",
                        in_the_way(&self.url)
                    ));
                }
                Err(_) => never::<()>().recv_timeout(UNDO_PAUSE).unwrap_err(),
                Ok(()) => continue,
            };
        }
        Ok(())
    }
}

fn execute(url: &str, deed: Deed, statements: &[String]) -> Result<(), String> {
    let execute = || {
        let mut client = Client::connect(url, NoTls)?;
        client.batch_execute(&format!(
            "SET lock_timeout = {}; SET default_transaction_isolation = '{}'",
            LOCK_TIMEOUT.as_millis(),
            deed.isolation()
        ))?;
        statements.iter().try_for_each(|sql| client.batch_execute(sql))
    };
    execute().map_err(|error: postgres::Error| match error.as_db_error() {
        Some(error) => error.message().to_owned(),
        None => error.to_string(),
    })
}

/// The sessions that hold locks on tables, for the message when something cannot be undone.
fn in_the_way(url: &str) -> String {
    let sql = "SELECT a.pid, a.usename::text, a.state, now() - a.xact_start, string_agg(DISTINCT l.mode || ' on ' || l.relation::regclass::text, ', '),
                      a.wait_event, left(a.query, 100)
               FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
               WHERE l.locktype = 'relation' AND l.granted AND l.relation > 16000 AND l.pid IS DISTINCT FROM pg_backend_pid()
               GROUP BY a.pid, a.usename, a.state, a.xact_start, a.wait_event, a.query";
    let seen = Client::connect(url, NoTls).and_then(|mut client| client.simple_query(sql));
    format!("{seen:#?}")
}
