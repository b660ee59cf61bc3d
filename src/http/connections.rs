//! Accepts connections and gives each a seat. When seats are short, the newest connections are
//! preferred.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};
use parking_lot::Mutex;

use super::exchange::answer;
use super::site::Site;
use crate::backoff::Mentions;
use crate::threads::{Never, Stop, safely};

/// The most connections answered at the same time: many more than scrapers and probes make, few
/// enough to do no harm.
pub(super) const MOST_CONNECTIONS: usize = 64;
/// How many connections the system may queue for the acceptor. With std's 128, a burst of idle
/// clients makes the system drop the first packet of a scrape, and the scraper sends it again only
/// after a second.
pub(super) const BACKLOG: i32 = 1024;
/// The pause after an accept that failed because file descriptors or memory were exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// The open connections, the oldest first.
#[derive(Default)]
pub(super) struct Connections {
    pub(super) open: Mutex<BTreeMap<u64, Arc<TcpStream>>>,
}

impl Connections {
    /// Adds a connection, and closes the oldest one if there are too many. Returns whether the
    /// added one is open.
    fn open(&self, number: u64, stream: Arc<TcpStream>) -> bool {
        let mut open = self.open.lock();
        open.insert(number, stream);
        if open.len() > MOST_CONNECTIONS
            && let Some((oldest, stream)) = open.pop_first()
        {
            close(&stream);
            return oldest != number;
        }
        true
    }

    /// Closes the older half of the connections, when file descriptors or memory are short.
    fn close_older_half(&self) {
        let mut open = self.open.lock();
        for _ in 0..open.len().div_ceil(2) {
            if let Some((_, stream)) = open.pop_first() {
                close(&stream);
            }
        }
    }

    pub(super) fn close_all(&self) {
        for stream in std::mem::take(&mut *self.open.lock()).values() {
            close(stream);
        }
    }
}

/// Ends any read or write on the connection, in whichever thread.
pub(super) fn close(stream: &TcpStream) {
    // Fails only if the client has already gone.
    _ = stream.shutdown(Shutdown::Both);
}

pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    pub(super) site: Arc<Site>,
    pub(super) connections: Arc<Connections>,
    /// A message for each thread that answers a connection.
    pub(super) seats: (Sender<()>, Receiver<()>),
    pub(super) stop: Stop,
    pub(super) alive: Sender<Never>,
}

impl Acceptor {
    pub(super) fn run(self) {
        let mut waiting = VecDeque::new();
        let mut last = 0;
        let (mut refused, mut threadless) = (Mentions::default(), Mentions::default());
        loop {
            let accepted = self.accept_into(&mut waiting, &mut last);
            if self.stop.is_raised() {
                break;
            }
            // The newest first, because it is most likely to be still waiting for an answer.
            if let Some((number, stream)) = waiting.pop_back()
                && let Err(error) = self.answer_in_a_thread(number, stream)
                && threadless.is_due()
            {
                safely(|| log::warn!("metrics server cannot start a thread, drops the connection: error={error}"));
            }
            if let Err(error) = &accepted {
                // Most likely file descriptors or memory are exhausted. That is temporary, so it is
                // no reason to end.
                if refused.is_due() {
                    safely(|| log::warn!("metrics server cannot accept a connection, will retry: error={error}"));
                }
                waiting.drain(..waiting.len().div_ceil(2));
                self.connections.close_older_half();
                self.stop.wait(ACCEPT_PAUSE);
            }
        }
        // Closes connections that were accepted after the server closed all.
        self.connections.close_all();
    }

    /// Takes the waiting connections, numbered by age; waits for one if there is none. Of a burst,
    /// only as many are kept as there are seats, so that the rest cost one accept each and no
    /// thread.
    fn accept_into(&self, waiting: &mut VecDeque<(u64, TcpStream)>, last: &mut u64) -> io::Result<()> {
        let mut wait = waiting.is_empty();
        // Bounded, because clients may come as fast as they are taken.
        for _ in 0..BACKLOG {
            self.listener.set_nonblocking(!wait)?;
            match self.listener.accept() {
                Ok((stream, _)) => {
                    *last += 1;
                    waiting.push_back((*last, stream));
                    if waiting.len() > MOST_CONNECTIONS {
                        waiting.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            wait = false;
        }
        Ok(())
    }

    /// The error is that of starting the thread.
    fn answer_in_a_thread(&self, number: u64, stream: TcpStream) -> io::Result<()> {
        // Some systems apply the listener's mode to the connections that it accepts.
        if stream.set_nonblocking(false).is_err() {
            return Ok(());
        }
        let stream = Arc::new(stream);
        if !self.connections.open(number, stream.clone()) {
            return Ok(());
        }
        // The thread of a closed connection gives its seat back within microseconds.
        select! {
            send(self.seats.0, ()) -> _ => {}
            recv(self.stop.heard()) -> _ => return Ok(()),
        }
        let seat = Seat {
            number,
            connections: self.connections.clone(),
            seats: self.seats.1.clone(),
            _alive: self.alive.clone(),
        };
        let site = self.site.clone();
        let thread = std::thread::Builder::new().name(format!("pup-http-{}", number % 1000));
        let spawned = thread.spawn(move || {
            // Kept until the end, also if the answer panics.
            let _seat = seat;
            if let Err(error) = answer(&site, &stream) {
                log::debug!("metrics server could not answer: error={error}");
            }
        });
        spawned.map(drop)
    }
}

/// A connection's place among the open ones. It is given back when the connection's thread ends.
pub(super) struct Seat {
    number: u64,
    connections: Arc<Connections>,
    seats: Receiver<()>,
    _alive: Sender<Never>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.open.lock().remove(&self.number);
        // Never empty: this seat's own message is in it.
        _ = self.seats.try_recv();
    }
}
