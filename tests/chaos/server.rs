//! The server, and a thread that restarts it while other things go wrong.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, never, unbounded};

use pupsourcing_orchestrator::testing;

use crate::support::{Postgres, StopMode};

pub(crate) struct Server {
    url: String,
    port: u16,
    orders: Option<Sender<(StopMode, Duration)>>,
    done: Receiver<Result<(), testing::Error>>,
    pending: usize,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        // A stopping server waits this long for the first message of a client, and the proxy may
        // hold that message back.
        let mut postgres = Postgres::options().setting("authentication_timeout", "5s").start().unwrap();
        let url = postgres.create_database("chaos").unwrap();
        let port = postgres.port();
        let (orders, received) = unbounded::<(StopMode, Duration)>();
        let (sender, done) = unbounded();
        let thread = thread::Builder::new().name("server".into()).spawn(move || {
            for (mode, away) in received {
                let restarted = postgres.stop(mode).and_then(|()| {
                    never::<()>().recv_timeout(away).unwrap_err();
                    postgres.start_again()
                });
                _ = sender.send(restarted);
            }
        });
        Self { url, port, orders: Some(orders), done, pending: 0, thread: Some(thread.unwrap()) }
    }

    /// The URL of the database.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Stops the server, and starts it again after a while. Returns at once.
    pub(crate) fn restart(&mut self, mode: StopMode, away: Duration) {
        self.pending += 1;
        self.orders.as_ref().unwrap().send((mode, away)).unwrap();
    }

    /// Waits until the server is running again.
    pub(crate) fn await_ready(&mut self) {
        while self.pending > 0 {
            self.done.recv_timeout(Duration::from_secs(60)).unwrap().unwrap_or_else(|e| panic!("{e}"));
            self.pending -= 1;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}
