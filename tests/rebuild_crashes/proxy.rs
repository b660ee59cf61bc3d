//! A proxy between a worker and the server, which stops at a message: the test kills the worker
//! there. A worker waits for the answer to each message, so a message is one or a few statements.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

/// Where the proxy stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    /// The number of the message, from 1 on.
    pub(crate) message: usize,
    pub(crate) side: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The server does not get the message.
    Before,
    /// The worker does not get the answer.
    After,
}

/// A running proxy. Its threads end with the process.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    stopped: Receiver<()>,
}

struct Shared {
    state: Mutex<State>,
    stopped: Sender<()>,
}

#[derive(Default)]
struct State {
    /// How many messages have arrived since the proxy was armed.
    messages: usize,
    point: Option<Point>,
    /// Both ends of each connection.
    connections: Vec<[TcpStream; 2]>,
}

impl Proxy {
    pub(crate) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, stopped) = unbounded();
        let shared = Arc::new(Shared { state: Mutex::default(), stopped: sender });
        let ours = Arc::clone(&shared);
        thread::spawn(move || {
            for worker in listener.incoming().map_while(Result::ok) {
                Arc::clone(&ours).forward(worker, TcpStream::connect(server).unwrap());
            }
        });
        Self { port, shared, stopped }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Counts the messages from now on, and stops at this one.
    pub(crate) fn arm(&self, point: Option<Point>) {
        let mut state = self.shared.state.lock();
        (state.messages, state.point) = (0, point);
    }

    /// How many messages have arrived since then.
    pub(crate) fn messages(&self) -> usize {
        self.shared.state.lock().messages
    }

    /// Says that the proxy has stopped.
    pub(crate) fn stopped(&self) -> &Receiver<()> {
        &self.stopped
    }

    /// Ends all connections: the server sees that the worker is gone.
    pub(crate) fn disconnect(&self) {
        for end in self.shared.state.lock().connections.drain(..).flatten() {
            // The other side may have closed it.
            _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn forward(self: Arc<Self>, worker: TcpStream, server: TcpStream) {
        let copy = |stream: &TcpStream| stream.try_clone().unwrap();
        self.state.lock().connections.push([copy(&worker), copy(&server)]);
        for stream in [&worker, &server] {
            stream.set_nodelay(true).unwrap();
        }
        let (from, to) = (copy(&worker), copy(&server));
        let ours = Arc::clone(&self);
        thread::spawn(move || pass(from, to, || ours.passes_message()));
        thread::spawn(move || pass(server, worker, || self.passes_answer()));
    }

    fn passes_message(&self) -> bool {
        let mut state = self.state.lock();
        state.messages += 1;
        let stops = state.point == Some(Point { message: state.messages, side: Side::Before });
        if stops {
            self.stopped.send(()).unwrap();
        }
        !stops
    }

    fn passes_answer(&self) -> bool {
        let state = self.state.lock();
        let stops = state.point == Some(Point { message: state.messages, side: Side::After });
        if stops {
            self.stopped.send(()).unwrap();
        }
        !stops
    }
}

/// Passes on what arrives, until one of the ends is closed, or the proxy is to stop.
fn pass(mut from: TcpStream, mut to: TcpStream, goes_on: impl Fn() -> bool) {
    let mut buffer = [0; 16_384];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !goes_on() || to.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    _ = to.shutdown(Shutdown::Both);
}
