//! A TCP proxy between a worker and the server, which can delay, hold and lose data as networks do.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::never;
use parking_lot::{Condvar, Mutex};

/// A running proxy. Its threads end with the process.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    mood: Mutex<Mood>,
    changed: Condvar,
    connections: Mutex<Vec<Connection>>,
    accepted: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Mood {
    hold_requests: bool,
    hold_answers: bool,
    delay: Duration,
    /// The number of cuts. Data read before a cut is not written after it.
    cuts: u32,
    /// Connections with a lower number end. What they have sent to the server last arrives at this
    /// time.
    lingering: Option<(u64, Instant)>,
}

struct Connection {
    worker: TcpStream,
    server: TcpStream,
}

#[derive(Clone, Copy)]
enum Direction {
    Requests,
    Answers,
}

impl Proxy {
    /// Forwards connections to the server.
    pub(crate) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        spawn("proxy", move || {
            for worker in listener.incoming().map_while(Result::ok) {
                // If the server is away, the worker finds its connection closed.
                if let Ok(server) = TcpStream::connect(server) {
                    ours.forward(worker, server);
                }
            }
        });
        Self { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn hold(&self, requests: bool, answers: bool) {
        self.shared.change(|mood| (mood.hold_requests, mood.hold_answers) = (requests, answers));
    }

    /// Whether nothing is forwarded in at least one direction, so that the worker is cut off.
    pub(crate) fn is_holding(&self) -> bool {
        let mood = self.shared.mood.lock();
        mood.hold_requests || mood.hold_answers
    }

    /// The delay with which everything is forwarded.
    pub(crate) fn delayed_by(&self) -> Duration {
        self.shared.mood.lock().delay
    }

    pub(crate) fn delay(&self, delay: Duration) {
        self.shared.change(|mood| mood.delay = delay);
    }

    pub(crate) fn heal(&self) {
        self.shared.change(|mood| *mood = Mood { cuts: mood.cuts, lingering: mood.lingering, ..Mood::default() });
    }

    /// Closes all connections. Data that is on its way is lost.
    pub(crate) fn cut(&self) {
        self.shared.change(|mood| *mood = Mood { cuts: mood.cuts + 1, ..Mood::default() });
        for connection in self.shared.connections.lock().drain(..) {
            _ = connection.worker.shutdown(Shutdown::Both);
            _ = connection.server.shutdown(Shutdown::Both);
        }
    }

    /// Ends all connections as the worker sees them. What it has sent last still arrives at the
    /// server, after this delay.
    pub(crate) fn linger(&self, for_so_long: Duration) {
        let connections = self.shared.connections.lock();
        let beyond = self.shared.accepted.load(Ordering::Relaxed);
        let lingering = Some((beyond, Instant::now() + for_so_long));
        self.shared.change(|mood| *mood = Mood { cuts: mood.cuts, lingering, ..Mood::default() });
        for connection in connections.iter() {
            _ = connection.worker.shutdown(Shutdown::Write);
        }
    }

    /// Ends one direction of all connections.
    pub(crate) fn half_close(&self, requests: bool) {
        for connection in self.shared.connections.lock().iter() {
            let towards = if requests { &connection.server } else { &connection.worker };
            _ = towards.shutdown(Shutdown::Write);
        }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Mood)) {
        change(&mut self.mood.lock());
        self.changed.notify_all();
    }

    fn forward(self: &Arc<Self>, worker: TcpStream, server: TcpStream) {
        for stream in [&worker, &server] {
            _ = stream.set_nodelay(true);
        }
        let mut connections = self.connections.lock();
        let number = self.accepted.fetch_add(1, Ordering::Relaxed);
        for (direction, from, to) in [(Direction::Requests, &worker, &server), (Direction::Answers, &server, &worker)] {
            let (from, to, shared) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(self));
            spawn("proxy-pump", move || shared.pump(number, direction, from, to));
        }
        connections.retain(|connection| connection.worker.peer_addr().is_ok());
        connections.push(Connection { worker, server });
    }

    fn pump(&self, number: u64, direction: Direction, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        let cuts = self.mood.lock().cuts;
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let delay = self.mood.lock().delay;
            if !delay.is_zero() {
                never::<()>().recv_timeout(delay).unwrap_err();
            }
            if self.await_release(number, direction) != cuts || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // The end of a direction does not pass either while the direction is held.
        self.await_release(number, direction);
        _ = to.shutdown(Shutdown::Write);
        _ = from.shutdown(Shutdown::Read);
    }

    /// Waits while the direction is held. Returns the number of cuts.
    fn await_release(&self, number: u64, direction: Direction) -> u32 {
        let mut mood = self.mood.lock();
        loop {
            let (held, lingering) = match direction {
                Direction::Requests => (mood.hold_requests, mood.lingering.filter(|(beyond, _)| number < *beyond)),
                Direction::Answers => (mood.hold_answers, None),
            };
            match lingering {
                _ if held => self.changed.wait(&mut mood),
                Some((_, until)) if Instant::now() < until => _ = self.changed.wait_until(&mut mood, until),
                _ => return mood.cuts,
            }
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name.into()).spawn(run).unwrap();
}
