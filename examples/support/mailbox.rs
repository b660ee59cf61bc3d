//! A service for mails that runs in this program, and what it received. A client sends one line per
//! mail, and an empty line at the end; it is answered with one line.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

/// A mail about an event.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mail {
    pub(crate) position: i64,
    pub(crate) aggregate: String,
    pub(crate) version: i64,
}

/// Sends mails, and returns once all of them were received.
pub(crate) fn send(to: SocketAddr, mails: &[Mail]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let lines = mails.iter().map(|mail| format!("{} {} {}\n", mail.position, mail.version, mail.aggregate));
    stream.write_all(format!("{}\n", lines.collect::<String>()).as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer == "received\n" { Ok(()) } else { Err(std::io::Error::other("the mails were not received")) }
}

/// The service.
pub(crate) struct Mailbox {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<Mail>>>,
}

impl Mailbox {
    /// Starts the service, which ends with the process.
    pub(crate) fn open() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let received = Arc::new(Mutex::new(Vec::new()));
        let into = received.clone();
        thread::Builder::new().name("mailbox".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                // A worker that is killed breaks off.
                _ = receive(&client, &into);
            }
        })?;
        Ok(Self { address, received })
    }

    /// How many different mails it received, how many of them again, and how many out of order.
    pub(crate) fn count(&self) -> (HashSet<i64>, usize, usize) {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut positions, mut last) = (HashSet::new(), HashMap::new());
        let mut out_of_order = 0;
        for Mail { position, aggregate, version } in received.iter() {
            if positions.insert(*position) {
                let before = last.insert(aggregate.as_str(), *version).unwrap_or(0);
                out_of_order += usize::from(before > *version);
            }
        }
        let repeated = received.len() - positions.len();
        (positions, repeated, out_of_order)
    }
}

fn receive(mut client: &TcpStream, into: &Mutex<Vec<Mail>>) -> std::io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    for line in BufReader::new(client).lines() {
        let line = line?;
        if line.is_empty() {
            return client.write_all(b"received\n");
        }
        let mut words = line.splitn(3, ' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let (position, version) = (number(), number());
        let mail = Mail { position, version, aggregate: words.next().unwrap_or_default().to_owned() };
        into.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
    }
    Ok(())
}
