//! The connected clients. Decides which of them is closed when there are too many.
//!
//! A client that opens connections without end must not displace a probe. So the server closes a
//! connection of the peer that has the most. Several clients may share one address, for example
//! behind a proxy. So among the connections of that peer, it first closes those that have not sent
//! a request, the oldest of these first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::threads::Stop;

/// How many bytes of a request are examined before it gets a thread. A scrape or a probe is
/// shorter.
const LOOKED_AT: usize = 1024;

/// A connection that was accepted.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) peer: IpAddr,
    /// Whether the head of the request is known to have arrived.
    pub(super) has_asked: AtomicBool,
    /// Raised when the server closes the connection, for a thread that waits for something else
    /// than the client.
    pub(super) closed: Stop,
}

impl Client {
    pub(super) fn new(stream: TcpStream, peer: IpAddr) -> Self {
        Self { stream, peer: peer.to_canonical(), has_asked: false.into(), closed: Stop::new() }
    }

    /// Whether a request has arrived, for a client that has no thread yet. The stream must be
    /// non-blocking.
    pub(super) fn is_asking(&self) -> bool {
        let has_arrived = || {
            let mut head = [0; LOOKED_AT];
            self.stream.peek(&mut head).is_ok_and(|read| ends_head(&head[..read]))
        };
        // A request that has arrived is not examined again: a flood of requests must not cost more
        // than a flood of silent clients.
        let is_asking = self.has_asked() || has_arrived();
        self.has_asked.store(is_asking, Ordering::Relaxed);
        is_asking
    }

    pub(super) fn has_asked(&self) -> bool {
        self.has_asked.load(Ordering::Relaxed)
    }

    /// Ends any read or write on the connection, on any thread.
    pub(super) fn close(&self) {
        self.closed.raise();
        // Fails only if the client has already closed the connection.
        _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Clients with their numbers, by peer. The oldest client of each peer comes first.
#[derive(Default)]
pub(super) struct Clients(BTreeMap<IpAddr, VecDeque<(u64, Arc<Client>)>>);

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.0.values().map(VecDeque::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert(&mut self, number: u64, client: Arc<Client>) {
        self.0.entry(client.peer).or_default().push_back((number, client));
    }

    pub(super) fn remove(&mut self, peer: IpAddr, number: u64) {
        if let Some(index) = self.0.get(&peer).and_then(|of| of.iter().position(|(known, _)| *known == number)) {
            self.take(peer, index);
        }
    }

    pub(super) fn close_all(&mut self) {
        for (_, client) in std::mem::take(&mut self.0).values().flatten() {
            client.close();
        }
    }

    /// Closes clients until no more than `most` are left. Returns the number of the last one that
    /// was closed.
    pub(super) fn close_down_to(&mut self, most: usize, has_asked: impl Fn(&Client) -> bool) -> Option<u64> {
        let mut closed = None;
        for _ in most..self.len() {
            let (peer, index) = self.expendable(&has_asked)?;
            let (number, client) = self.take(peer, index)?;
            client.close();
            closed = Some(number);
        }
        closed
    }

    /// Takes the client to answer next. It prefers a client that has sent a request, then one of
    /// the peer with the fewest clients, then the newest, because that one is most likely still
    /// waiting.
    pub(super) fn take_next(
        &mut self,
        is_asking: impl Fn(&Client) -> bool,
        or_silent: bool,
    ) -> Option<(u64, Arc<Client>)> {
        let next = self.0.iter().filter_map(|(peer, of)| {
            let asking = of.iter().rposition(|(_, client)| is_asking(client));
            let index = asking.or_else(|| of.len().checked_sub(1).filter(|_| or_silent))?;
            Some((asking.is_some(), Reverse(of.len()), of[index].0, *peer, index))
        });
        let (.., peer, index) = next.max()?;
        self.take(peer, index)
    }

    /// Returns the peer that has the most clients, and the index of its client to close.
    fn expendable(&self, has_asked: impl Fn(&Client) -> bool) -> Option<(IpAddr, usize)> {
        let most = self.0.values().map(VecDeque::len).max()?;
        let candidates = self.0.iter().filter(|(_, of)| of.len() == most).map(|(peer, of)| {
            let silent = of.iter().position(|(_, client)| !has_asked(client));
            let index = silent.unwrap_or(0);
            (silent.is_none(), of[index].0, *peer, index)
        });
        candidates.min().map(|(.., peer, index)| (peer, index))
    }

    fn take(&mut self, peer: IpAddr, index: usize) -> Option<(u64, Arc<Client>)> {
        let of = self.0.get_mut(&peer)?;
        let taken = of.remove(index);
        if of.is_empty() {
            self.0.remove(&peer);
        }
        taken
    }
}

/// Whether the empty line that ends a request's head is among these bytes.
pub(super) fn ends_head(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|end| end == b"\r\n\r\n") || bytes.windows(2).any(|end| end == b"\n\n")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Creates clients, the oldest first. Each letter is a client of the peer of that letter, in
    /// upper case if the client has sent a request.
    fn clients(letters: &str) -> Clients {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut clients = Clients::default();
        for (number, letter) in (0..).zip(letters.bytes()) {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let client = Client::new(stream, [127, 0, 0, letter.to_ascii_lowercase()].into());
            client.has_asked.store(letter.is_ascii_uppercase(), Ordering::Relaxed);
            clients.insert(number, Arc::new(client));
        }
        clients
    }

    #[test]
    fn the_greediest_peer_loses_a_client_the_silent_first() {
        for (letters, goes) in
            [("a", 0), ("ab", 0), ("abb", 1), ("aBb", 2), ("aBB", 1), ("AbAbB", 1), ("Abc", 1), ("cba", 0), ("ABC", 0)]
        {
            let mut clients = clients(letters);
            assert_eq!(clients.close_down_to(letters.len() - 1, Client::has_asked), Some(goes), "{letters}");
            assert_eq!(clients.len(), letters.len() - 1, "{letters}");
        }
        let mut all = clients("abcB");
        assert_eq!(all.close_down_to(4, Client::has_asked), None);
        assert_eq!(all.close_down_to(0, Client::has_asked), Some(3));
        assert!(all.is_empty());
    }

    #[test]
    fn who_asks_is_next_and_a_modest_peer_before_a_greedy_one() {
        for (letters, next) in
            [("a", 0), ("ab", 1), ("Ab", 0), ("AAA", 2), ("AaA", 2), ("ABBB", 0), ("aBBB", 3), ("Aabb", 0)]
        {
            let taken = clients(letters).take_next(Client::has_asked, true).map(|(number, _)| number);
            assert_eq!(taken, Some(next), "{letters}");
        }
        assert!(clients("aab").take_next(Client::has_asked, false).is_none());
    }
}
