//! Sends a webhook for each event of an order, to a receiver that fails, hangs and restarts, from
//! worker processes of which one is killed. In the end, what the receiver has accepted is compared
//! with the events: nothing is lost, the order of each aggregate is kept, and each repetition has
//! the id of the first delivery. PostgreSQL is a server that this program starts and removes by
//! itself. It takes about ten seconds.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a show")]

use std::io::Write as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver as Lines, bounded, select, tick};
use pupsourcing_orchestrator::{
    BoxError, Call, Database, Error, Event, EventStore, ExpectedVersion, NewEvent, Options, Orchestrator, Passing,
    Reaction, Retry, Scope, StreamId, testing,
};

#[path = "support/app.rs"]
mod app;
#[path = "support/process.rs"]
mod process;
#[path = "support/receiver.rs"]
mod receiver;
#[path = "support/webhook.rs"]
mod webhook;

use process::{Line, Process, Stream};
use receiver::{Findings, Mood, Notice, Receiver, events, findings};

const USAGE: &str = "usage: reactions";

/// How long the receiver may take to answer. It must be well below `coordination_timeout`.
const PATIENCE: Duration = Duration::from_millis(500);

/// How many events a worker sends at the same time, each of another order.
const IN_FLIGHT: usize = 8;

/// What happens after how many tenths of a second. The numbers count the workers from 1.
const SCRIPT: [(u64, Act); 9] = [
    (10, Act::Be(Mood::Answers(500))),
    (15, Act::Be(Mood::Well)),
    (20, Act::Be(Mood::Hangs)),
    (28, Act::Be(Mood::Well)),
    (32, Act::Be(Mood::Away)),
    (40, Act::Be(Mood::Well)),
    (46, Act::Kill(1)),
    (48, Act::Be(Mood::Mute)),
    (52, Act::Be(Mood::Well)),
];
const TENTHS: u64 = 60;

/// How many orders get an event at each tenth of a second.
const EVENTS: u64 = 20;
const ORDERS: u64 = 150;

/// How long the workers may take for the last events.
const CATCH_UP: Duration = Duration::from_secs(15);

#[derive(Clone, Copy)]
enum Act {
    Be(Mood),
    Kill(usize),
}

/// Tells the receiver of each event of an order.
struct Webhooks {
    receiver: String,
    patience: Duration,
}

impl Reaction for Webhooks {
    fn name(&self) -> &str {
        "webhooks"
    }

    fn scope(&self) -> Scope {
        Scope::all().aggregate_types(["Order"])
    }

    fn options(&self) -> Options {
        // A receiver that is away is asked again within half a second.
        let retry = Retry::default().first_delay(Duration::from_millis(50)).longest_delay(Duration::from_millis(500));
        Options::default().in_flight(IN_FLIGHT).retry(retry)
    }

    /// With several events in flight, each call has one. So it also works without that option, when
    /// a call has many.
    fn react(&self, call: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        for (done, event) in events.iter().enumerate() {
            // A worker that is to pause does not wait for the rest, and neither do the others.
            if done > 0 && call.is_pause_requested() {
                return Ok(done);
            }
            match self.send(call, event) {
                Ok(()) => {}
                Err(error) if done == 0 => return Err(error),
                // The next call begins with this event, and reports its error if it fails again.
                Err(_) => return Ok(done),
            }
        }
        Ok(events.len())
    }
}

impl Webhooks {
    fn send(&self, call: &Call<'_>, event: &Event) -> Result<(), BoxError> {
        let notice = Notice {
            aggregate: event.aggregate_id().to_owned(),
            version: event.aggregate_version(),
            event_type: event.event_type().to_owned(),
        };
        let body = serde_json::to_string(&notice)?;
        // A call that ends before its deadline never delays the other workers too long.
        let until = call.deadline().min(Instant::now() + self.patience);
        // The same for each attempt, so that the receiver can recognize a repetition.
        let key = event.event_id().to_string();
        match webhook::post(&self.receiver, &key, &body, until).map_err(Passing::new)? {
            200..=299 => Ok(()),
            // The receiver is ill, and not the event: such attempts are not counted.
            status @ (408 | 429 | 500..) => Err(Passing::new(format!("the receiver answered {status}")).into()),
            status => Err(format!("the receiver refused the event with {status}").into()),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(),
        // How this program starts itself as a worker.
        ["worker", url, receiver] => work(url, receiver, PATIENCE).map(|()| ExitCode::SUCCESS),
        // With the patience in seconds, for tests.
        ["worker", url, receiver, patience] => patience
            .parse()
            .map_err(BoxError::from)
            .and_then(|seconds| work(url, receiver, Duration::from_secs(seconds)))
            .map(|()| ExitCode::SUCCESS),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{}", app::explain(&*error));
        ExitCode::FAILURE
    })
}

fn orchestrator(url: &str, receiver: &str, patience: Duration) -> Result<Orchestrator, Error> {
    Orchestrator::builder(Database::from_url(url)?, "notices")
        .reaction(Webhooks { receiver: receiver.to_owned(), patience })
        .coordination_timeout(Duration::from_secs(5))
        .registration_wait(Duration::from_millis(100))
        .options_from_env("ORCHESTRATOR_")?
        .build()
}

/// A worker process: leaves on SIGTERM. Says when it has registered.
fn work(url: &str, receiver: &str, patience: Duration) -> Result<(), BoxError> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    let shutdown = app::shutdown_signal()?;
    let handle = orchestrator(url, receiver, patience)?.start()?;
    writeln!(std::io::stdout(), "registered")?;
    Ok(handle.run_until(&shutdown)?)
}

/// The show, from the server's start to its removal.
fn show() -> Result<ExitCode, BoxError> {
    let begun = Instant::now();
    let interrupt = app::shutdown_signal()?;
    let database = testing::database()?;
    let mut client = database.client()?;
    let receiver = Receiver::start()?;
    let (url, address) = (database.url(), receiver.address());
    orchestrator(url, &address, PATIENCE)?.migrate()?;
    // The reaction starts at the end. So its first worker registers before the first event.
    let mut workers = vec![Worker::start(url, &address)?, Worker::start(url, &address)?];
    println!("two workers send what happens to orders to http://{address}/events, {IN_FLIGHT} orders at once each");
    println!("   time  appended  delivered  repeated");

    let store = EventStore::default();
    let tenths = tick(Duration::from_millis(100));
    for tenth in 0..TENTHS {
        for (_, act) in SCRIPT.iter().filter(|(at, _)| *at == tenth) {
            perform(*act, &receiver, &mut workers);
        }
        for event in tenth * EVENTS..(tenth + 1) * EVENTS {
            let order = StreamId::new("shop", "Order", format!("order-{}", event % ORDERS));
            let event_type = ["Placed", "Paid", "Packed", "Shipped"][usize::try_from(event / ORDERS)? % 4];
            store.append(&mut client, &order, ExpectedVersion::Any, &[NewEvent::new(event_type, "{}")])?;
        }
        if tenth % 5 == 4 {
            print_row(begun, (tenth + 1) * EVENTS, &receiver);
        }
        select! {
            recv(tenths) -> _ => {}
            recv(interrupt) -> _ => return Ok(ExitCode::from(130)),
        }
    }

    println!("no more events; waiting for the last deliveries");
    let expected = events(&mut client)?;
    let deadline = Instant::now() + CATCH_UP;
    while receiver.events() < expected.len() && Instant::now() < deadline {
        tenths.recv()?;
    }
    print_row(begun, TENTHS * EVENTS, &receiver);
    let found = findings(&expected, &receiver.accepted());
    workers.drain(..).try_for_each(Worker::leave)?;
    let (events, took) = (expected.len(), begun.elapsed().as_secs_f64());
    let Findings { missing, wrong, out_of_order, repeated } = found;
    let is_well = (missing, wrong, out_of_order) == (0, 0, 0);
    println!(
        "{}: {events} events; {missing} lost, {wrong} with a wrong id, {out_of_order} out of order, {repeated} repeated \
         with the id of the first delivery; {took:.1} s",
        if is_well { "OK" } else { "FAILED" }
    );
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn perform(act: Act, receiver: &Receiver, workers: &mut Vec<Worker>) {
    match act {
        Act::Be(mood) => {
            let what = match mood {
                Mood::Well => "is well again",
                Mood::Answers(_) => "fails: it answers 500",
                Mood::Hangs => "hangs: it answers nothing",
                Mood::Away => "stops: it does not listen",
                Mood::Mute => "accepts events, and does not say so",
            };
            println!("the receiver {what}");
            receiver.be(mood);
        }
        Act::Kill(number) => {
            let worker = workers.remove(number - 1);
            println!("worker {number} is killed: kill -9 {}", worker.process.pid());
            // Dropping it kills it.
            drop(worker);
        }
    }
}

fn print_row(begun: Instant, appended: u64, receiver: &Receiver) {
    let (accepted, delivered) = (receiver.accepted().len(), receiver.events());
    let repeated = accepted - delivered;
    println!("{:5.1} s {appended:>9} {delivered:>10} {repeated:>9}", begun.elapsed().as_secs_f64());
}

/// A worker process, seen from the one that started it.
struct Worker {
    process: Process,
    _lines: Lines<Line>,
}

impl Worker {
    /// Returns when the worker has registered.
    fn start(url: &str, receiver: &str) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", url, receiver]);
        let (sender, lines) = bounded(1);
        let process = Process::start(command, Stream::Stdout, sender)?;
        lines.recv().map_err(|_| "a worker could not start")?;
        Ok(Self { process, _lines: lines })
    }

    fn leave(mut self) -> Result<(), BoxError> {
        self.process.signal(process::Signal::TERM)?;
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a worker that was to leave ended with {status}").into()) }
    }
}
