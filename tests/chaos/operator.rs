//! The operator: gives commands while everything else happens.
//!
//! It is a thread, like the neighbour: the server may be away. Then it is unknown whether a command
//! was recorded.

use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, unbounded};
use postgres::{Client, NoTls};
use serde_json::Value;

use crate::deliveries;
use crate::roles::PROJECTIONS;

/// How long the workers may take to apply all commands in a lull, in addition to the time within
/// which they own all keys.
const APPLIED_WITHIN: Duration = Duration::from_secs(20);

/// How long it may take to replay everything. Handlers still panic and fail at random, so some
/// aggregates are parked again.
const RELEASED_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take until all rebuilds have switched. A switch that was put off is tried again
/// after ten seconds.
const SWITCHED_WITHIN: Duration = Duration::from_secs(90);

/// Looks after the workers while something is awaited: a worker that aborts has to be started
/// again.
pub(crate) type Look<'a> = &'a mut dyn FnMut() -> Result<(), String>;

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A command, and the projection that it is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Order {
    pub(crate) projection: &'static str,
    pub(crate) command: &'static str,
    pub(crate) arguments: &'static str,
}

/// Every order once for each projection, with how often it occurs while others occur once. A rewind
/// to a position fails, because the projections can be rewound to the beginning only. A discard is
/// that of a random event that is parked.
pub(crate) fn all() -> Vec<(Order, usize)> {
    let commands = [
        ("pause", "{}", 4),
        ("resume", "{}", 5),
        ("replay", r#"{"all": true}"#, 5),
        ("discard", "", 2),
        ("rewind", r#"{"to_beginning": true}"#, 1),
        ("rewind", r#"{"to_position": 1}"#, 1),
        ("remove", "{}", 1),
        ("rebuild", r#"{"rate": null}"#, 4),
        ("rebuild", r#"{"rate": 3000, "keep_old": true}"#, 2),
        ("rebuild", r#"{"rate": null, "copy": true}"#, 1),
        ("cancel", "{}", 2),
        ("revert", "{}", 1),
        ("drop_old", "{}", 3),
    ];
    // A reaction refuses a rewind unless it is forced, and has nothing to rebuild.
    let to_reaction = [
        ("pause", "{}", 4),
        ("resume", "{}", 5),
        ("replay", r#"{"all": true}"#, 5),
        ("discard", "", 2),
        ("rewind", r#"{"to_beginning": true}"#, 2),
        ("rewind", r#"{"to_position": 1}"#, 1),
        ("rewind", r#"{"to_beginning": true, "repeat_effects": true}"#, 2),
        ("rebuild", r#"{"rate": null}"#, 1),
    ];
    let order = |projection| move |(command, arguments, weight)| (Order { projection, command, arguments }, weight);
    let to_projections = PROJECTIONS.iter().flat_map(|projection| commands.map(order(projection)));
    to_projections.chain(to_reaction.map(order(deliveries::NAME))).collect()
}

/// Corrects what makes some of the parked events fail.
const MEND_SOME: &str =
    "INSERT INTO mended SELECT event_id FROM orchestrator_parked WHERE random() < 0.5 ON CONFLICT DO NOTHING";
/// Corrects it for every event: the nil id stands for all.
const MEND_ALL: &str = "INSERT INTO mended VALUES ('00000000-0000-0000-0000-000000000000') ON CONFLICT DO NOTHING";

/// How often each command had each outcome.
pub(crate) type Tally = BTreeMap<(String, String), i64>;

pub(crate) struct Operator {
    url: String,
    orders: Sender<Option<Order>>,
    calmed: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Operator {
    pub(crate) fn start(url: &str) -> Self {
        let (orders, queue) = unbounded::<Option<Order>>();
        let (sender, calmed) = bounded(1);
        let at = url.to_owned();
        let thread = thread::Builder::new().name("operator".into());
        let thread = thread.spawn(move || {
            for order in queue {
                match order {
                    Some(order) => give(&at, order),
                    None => _ = sender.send(()),
                }
            }
        });
        Self { url: url.to_owned(), orders, calmed, thread: thread.unwrap() }
    }

    /// Gives a command. Returns at once.
    pub(crate) fn order(&self, order: Order) {
        self.orders.send(Some(order)).unwrap();
    }

    /// Resumes what is paused, and waits until every command has an outcome. The server must be
    /// running, and nothing may lock its tables. Some worker must be able to work.
    pub(crate) fn calm(&self, look: Look<'_>) -> Result<(), String> {
        self.orders.send(None).unwrap();
        self.calmed.recv().unwrap();
        let mut client = Client::connect(&self.url, NoTls).unwrap();
        let begun = Instant::now();
        loop {
            // A command that resumes is behind those that are pending.
            let resume = "SELECT orchestrator_command(name, 'resume', '{}', 'chaos') FROM orchestrator_projections p
                          WHERE desired_state = 'paused' AND kind <> 'old' AND NOT EXISTS (
                              SELECT FROM orchestrator_commands k WHERE k.projection = p.name AND k.applied_at IS NULL
                              AND coalesce(k.step, '') NOT IN ('loading', 'finishing'))";
            client.query(resume, &[]).unwrap();
            let pending = "SELECT k::text FROM orchestrator_commands k
                           WHERE applied_at IS NULL AND coalesce(step, '') NOT IN ('loading', 'finishing')
                           UNION ALL SELECT p::text FROM orchestrator_projections p WHERE desired_state = 'paused' AND kind <> 'old'";
            let pending: Vec<String> = client.query(pending, &[]).unwrap().iter().map(|row| row.get(0)).collect();
            if pending.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > APPLIED_WITHIN {
                return Err(format!("not applied within {APPLIED_WITHIN:?}: {pending:#?}"));
            }
            look()?;
            never::<()>().recv_timeout(PAUSE).unwrap_err();
        }
    }

    /// Corrects everything that makes events fail, and replays what is parked until nothing is. No
    /// events may be written meanwhile. What was parked when a read model was replaced stays with
    /// its former tables.
    pub(crate) fn release(&self, look: Look<'_>) -> Result<(), String> {
        let mut client = Client::connect(&self.url, NoTls).unwrap();
        client.batch_execute(MEND_ALL).unwrap();
        let begun = Instant::now();
        loop {
            let replay = r#"SELECT orchestrator_command(name, 'replay', '{"all": true}', 'chaos') FROM orchestrator_projections p
                            WHERE kind <> 'old' AND EXISTS (
                                SELECT FROM orchestrator_parked WHERE projection = p.name AND replay_requested_at IS NULL)"#;
            client.query(replay, &[]).unwrap();
            self.calm(look)?;
            let parked =
                "SELECT k::text FROM orchestrator_parked k JOIN orchestrator_projections p ON p.name = k.projection
                          WHERE p.kind <> 'old'";
            let parked = client.query(parked, &[]).unwrap();
            if parked.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > RELEASED_WITHIN {
                let parked: Vec<String> = parked.iter().map(|row| row.get(0)).collect();
                return Err(format!("still parked after {RELEASED_WITHIN:?}: {parked:#?}"));
            }
            look()?;
            never::<()>().recv_timeout(PAUSE).unwrap_err();
        }
    }

    /// Waits until the rebuilds have switched. Nothing stands in their way any more.
    pub(crate) fn end_rebuilds(&self, look: Look<'_>) -> Result<(), String> {
        let mut client = Client::connect(&self.url, NoTls).unwrap();
        let begun = Instant::now();
        loop {
            let sql = "SELECT concat(k::text, ' ', r::text) FROM orchestrator_commands k LEFT JOIN orchestrator_rebuilds r USING (id)
                       WHERE k.applied_at IS NULL";
            let pending: Vec<String> = client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect();
            if pending.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > SWITCHED_WITHIN {
                return Err(format!("not switched within {SWITCHED_WITHIN:?}: {pending:#?}"));
            }
            look()?;
            never::<()>().recv_timeout(PAUSE).unwrap_err();
        }
    }

    /// Waits until it has given its commands. Returns their outcomes.
    pub(crate) fn finish(self) -> Tally {
        drop(self.orders);
        self.thread.join().unwrap();
        let sql = "SELECT command, coalesce(outcome, 'pending'), count(*) FROM orchestrator_commands GROUP BY 1, 2";
        let rows = Client::connect(&self.url, NoTls).unwrap().query(sql, &[]).unwrap();
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
    }
}

fn give(url: &str, order: Order) {
    let Order { projection, command, arguments } = order;
    let give = || {
        let mut client = Client::connect(url, NoTls)?;
        client.batch_execute("SET lock_timeout = '2s'")?;
        if command == "replay" {
            client.batch_execute(MEND_SOME)?;
        }
        let arguments: Option<Value> = if command == "discard" {
            let parked = "SELECT jsonb_build_object('event', event_id) FROM orchestrator_parked
                          WHERE projection = $1 ORDER BY random() LIMIT 1";
            client.query_opt(parked, &[&projection])?.map(|row| row.get(0))
        } else {
            serde_json::from_str(arguments).ok()
        };
        // Without a parked event there is nothing to discard.
        let Some(arguments) = arguments else { return Ok(()) };
        let sql = "SELECT orchestrator_command($1, $2, $3, 'chaos', 'to see what happens')";
        client.query_one(sql, &[&projection, &command, &arguments]).map(|_| ())
    };
    if let Err(error) = give() {
        println!("the operator does not know whether this was recorded: {order:?}: {error}");
    }
}
