//! A writer that appends at a steady pace.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use pupsourcing_orchestrator::{EventStore, ExpectedVersion, NewEvent, StreamId};

use crate::support::server::connect;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// The mean time between two appends. The actual time is random, between half of it and one and
    /// a half times it, so that the appends do not synchronise with the polling of a worker.
    pub(crate) every: Duration,
    /// The number of events of one append.
    pub(crate) events: usize,
    pub(crate) hints: bool,
}

pub(crate) struct Writer {
    go_on: Sender<()>,
    thread: JoinHandle<usize>,
}

impl Writer {
    pub(crate) fn start(url: &str, pace: Pace) -> Self {
        let (go_on, stop) = bounded(0);
        let url = url.to_owned();
        let thread = thread::Builder::new().name("writer".into()).spawn(move || write(&url, pace, &stop));
        Self { go_on, thread: thread.unwrap() }
    }

    /// Ends the writer, and returns how many events it appended.
    pub(crate) fn stop(self) -> usize {
        drop(self.go_on);
        self.thread.join().unwrap()
    }
}

fn write(url: &str, pace: Pace, stop: &Receiver<()>) -> usize {
    let (mut client, store) = (connect(url), EventStore::default());
    let mut next = Instant::now();
    let mut appended = 0;
    loop {
        next += pace.every.mul_f64(0.5 + fastrand::f64());
        // Nothing is ever sent.
        if stop.recv_deadline(next) != Err(RecvTimeoutError::Timeout) {
            return appended;
        }
        let order = StreamId::new("shop", "Order", format!("order-{}", fastrand::u16(..1_000)));
        let event = || NewEvent::new("OrderPlaced", [b'x'; 200]);
        let events: Vec<NewEvent> = std::iter::repeat_with(event).take(pace.events).collect();
        store.append(&mut client, &order, ExpectedVersion::Any, &events).unwrap();
        if pace.hints {
            store.hint(&mut client);
        }
        appended += events.len();
    }
}
