//! Accepts connections and gives each a seat. If there are too few seats, [`Clients`] chooses which
//! connections get one.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};
use parking_lot::Mutex;

use super::clients::{Client, Clients};
use super::exchange::answer;
use super::site::Site;
use crate::backoff::Mentions;
use crate::error::field;
use crate::threads::{Never, Stop, safely};

/// The most connections that are answered at the same time: many more than scrapers and probes
/// open, and few enough to do no harm.
pub(super) const MOST_CONNECTIONS: usize = 64;
/// How many connections the operating system may queue for the acceptor; Linux allows this many by
/// default. With std's 128, a burst of idle clients makes the system drop the first packet of a
/// scrape, and the scraper sends it again only after a second.
pub(super) const BACKLOG: i32 = 4096;
/// How many connections are accepted before one of them is answered.
const BURST: usize = 256;
/// The pause after an accept that failed because file descriptors or memory were exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// The open connections.
#[derive(Default)]
pub(super) struct Connections {
    pub(super) open: Mutex<Clients>,
}

impl Connections {
    /// Adds a connection, and closes one if there are too many. Returns whether the added one is
    /// open.
    fn open(&self, number: u64, client: Arc<Client>) -> bool {
        let mut open = self.open.lock();
        open.insert(number, client);
        open.close_down_to(MOST_CONNECTIONS, Client::has_asked) != Some(number)
    }

    /// Closes half of the connections, because file descriptors or memory are exhausted.
    fn close_half(&self) {
        let mut open = self.open.lock();
        let half = half(open.len());
        open.close_down_to(half, Client::has_asked);
    }

    pub(super) fn close_all(&self) {
        self.open.lock().close_all();
    }
}

/// Returns how many connections are kept when file descriptors are exhausted. A single connection
/// is kept: an accept without a free descriptor fails even if no client is waiting, and the
/// connection that got the last descriptor may be a probe.
fn half(connections: usize) -> usize {
    connections.div_ceil(2)
}

pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    pub(super) site: Arc<Site>,
    pub(super) connections: Arc<Connections>,
    /// Holds a message for each thread that answers a connection.
    pub(super) seats: (Sender<()>, Receiver<()>),
    pub(super) stop: Stop,
    pub(super) alive: Sender<Never>,
}

impl Acceptor {
    pub(super) fn run(self) {
        let mut waiting = Clients::default();
        let mut last = 0;
        let (mut refused, mut threadless) = (Mentions::default(), Mentions::default());
        loop {
            let accepted = self.accept_into(&mut waiting, &mut last);
            if self.stop.is_raised() {
                break;
            }
            // Silent clients get a thread only if no other clients are waiting to be accepted.
            let are_all_accepted = *accepted.as_ref().unwrap_or(&true);
            if let Some((number, client)) = waiting.take_next(Client::is_asking, are_all_accepted)
                && let Err(error) = self.answer_in_a_thread(number, client)
                && threadless.is_due()
            {
                safely(|| {
                    log::warn!(
                        "metrics server cannot start a thread, drops the connection: error={error}",
                        error = field(&error)
                    );
                });
            }
            if let Err(error) = &accepted {
                // Most likely file descriptors or memory are exhausted. That is temporary, so the
                // server continues.
                if refused.is_due() {
                    safely(|| {
                        log::warn!(
                            "metrics server cannot accept a connection, will retry: error={error}",
                            error = field(&error)
                        );
                    });
                }
                waiting.close_down_to(half(waiting.len()), Client::is_asking);
                self.connections.close_half();
                self.stop.wait(ACCEPT_PAUSE);
            }
        }
        // Closes connections that were accepted after the server had closed all others.
        self.connections.close_all();
    }

    /// Accepts the waiting connections, and numbers them in that order. Waits for one if there is
    /// none. It keeps at most as many as there are seats: in a burst, each further connection costs
    /// one accept and no thread. Returns whether it has accepted all.
    fn accept_into(&self, waiting: &mut Clients, last: &mut u64) -> io::Result<bool> {
        let mut is_blocking = waiting.is_empty();
        self.listener.set_nonblocking(!is_blocking)?;
        // Bounded, because clients may connect as fast as they are accepted.
        for _ in 0..BURST {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    *last += 1;
                    // If this fails, the client has closed the connection.
                    if stream.set_nonblocking(true).is_ok() {
                        waiting.insert(*last, Arc::new(Client::new(stream, peer.ip())));
                        waiting.close_down_to(MOST_CONNECTIONS, Client::is_asking);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
            if std::mem::take(&mut is_blocking) {
                self.listener.set_nonblocking(true)?;
            }
        }
        Ok(false)
    }

    /// Answers a client on a thread of its own. The error is that of starting the thread.
    fn answer_in_a_thread(&self, number: u64, client: Arc<Client>) -> io::Result<()> {
        let is_gone = client.stream.set_nonblocking(false).is_err();
        if is_gone || !self.connections.open(number, client.clone()) {
            return Ok(());
        }
        // The thread of a closed connection returns its seat within microseconds.
        select! {
            send(self.seats.0, ()) -> _ => {}
            recv(self.stop.heard()) -> _ => return Ok(()),
        }
        let seat = Seat {
            number,
            peer: client.peer,
            connections: self.connections.clone(),
            seats: self.seats.1.clone(),
            _alive: self.alive.clone(),
        };
        let site = self.site.clone();
        let thread = std::thread::Builder::new().name(format!("pup-http-{}", number % 1000));
        let spawned = thread.spawn(move || {
            // Kept until the thread ends, even if the answer panics.
            let _seat = seat;
            if let Err(error) = answer(&site, &client) {
                log::debug!("metrics server could not answer: error={error}", error = field(&error));
            }
        });
        spawned.map(drop)
    }
}

/// The place of a connection among the open ones. It is returned when the connection's thread ends.
pub(super) struct Seat {
    number: u64,
    peer: IpAddr,
    connections: Arc<Connections>,
    seats: Receiver<()>,
    _alive: Sender<Never>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.open.lock().remove(self.peer, self.number);
        // Never empty: this seat's own message is in it.
        _ = self.seats.try_recv();
    }
}
