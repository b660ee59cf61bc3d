//! A receiver of webhooks that fails, hangs and restarts when it is told to, and the check of what
//! it has received.
#![allow(dead_code, reason = "several programs compile this file, and few of them call every function")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver as Orders, Sender, TryRecvError, unbounded};
use parking_lot::Mutex;
use pupsourcing_orchestrator::BoxError;
use serde::{Deserialize, Serialize};
use tiny_http::{Method, Request, Response, Server};

/// How soon it does what it is told.
const TICK: Duration = Duration::from_millis(10);

/// How it treats requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It accepts them.
    Well,
    /// It answers with this status, and accepts nothing.
    Answers(u16),
    /// It reads them, and does nothing with them until it is told otherwise.
    Hangs,
    /// It accepts them, but does not answer. So the sender cannot know that it has.
    Mute,
    /// It does not listen.
    Away,
}

/// What a sender says of an event, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    pub(crate) aggregate: String,
    pub(crate) version: i64,
    pub(crate) event_type: String,
}

/// A notice that was accepted, with its idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) key: String,
    pub(crate) notice: Notice,
}

/// A receiver, in a thread of its own. Dropping it ends it.
pub(crate) struct Receiver {
    address: SocketAddr,
    moods: Option<Sender<Mood>>,
    accepted: Arc<Mutex<Vec<Delivery>>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Receiver {
    pub(crate) fn start() -> Result<Self, BoxError> {
        let server = Server::http("127.0.0.1:0")?;
        let address = server.server_addr().to_ip().ok_or("the receiver has no address")?;
        let (moods, told) = unbounded();
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let desk = Desk {
            address,
            told,
            accepted: accepted.clone(),
            mood: Mood::Well,
            unread: Vec::new(),
            unanswered: Vec::new(),
        };
        let thread = thread::Builder::new().name("receiver".into()).spawn(move || {
            let ended = desk.serve(Some(server));
            ended.map_err(|error| format!("the receiver failed: {error}"))
        })?;
        Ok(Self { address, moods: Some(moods), accepted, thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn be(&self, mood: Mood) {
        if let Some(moods) = &self.moods {
            // It has ended only if this program is about to.
            _ = moods.send(mood);
        }
    }

    /// Everything that it has accepted so far, in this order.
    pub(crate) fn accepted(&self) -> Vec<Delivery> {
        self.accepted.lock().clone()
    }

    /// How many different events it has accepted so far.
    pub(crate) fn events(&self) -> usize {
        self.accepted.lock().iter().map(|delivery| delivery.key.as_str()).collect::<BTreeSet<_>>().len()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.moods = None;
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            log::error!("{error}");
        }
    }
}

/// The thread's part.
struct Desk {
    address: SocketAddr,
    told: Orders<Mood>,
    accepted: Arc<Mutex<Vec<Delivery>>>,
    mood: Mood,
    /// What it has read while it hangs.
    unread: Vec<Request>,
    /// What it has accepted and not answered. A request that is dropped is answered with 500.
    unanswered: Vec<Request>,
}

impl Desk {
    fn serve(mut self, mut server: Option<Server>) -> Result<(), BoxError> {
        loop {
            let told = match &server {
                Some(_) => self.told.try_recv(),
                None => self.told.recv().map_err(|_| TryRecvError::Disconnected),
            };
            match told {
                Ok(mood) => {
                    self.mood = mood;
                    self.unanswered.clear();
                    for request in std::mem::take(&mut self.unread) {
                        self.take(request);
                    }
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
            if self.mood == Mood::Away {
                server = None;
                continue;
            }
            let server = match &mut server {
                Some(server) => server,
                none => none.insert(Server::http(self.address)?),
            };
            if let Some(request) = server.recv_timeout(TICK)? {
                self.take(request);
            }
        }
    }

    fn take(&mut self, mut request: Request) {
        let status = match self.mood {
            Mood::Answers(status) => status,
            Mood::Away => return,
            Mood::Hangs => {
                self.unread.push(request);
                return;
            }
            Mood::Well | Mood::Mute => match delivery(&mut request) {
                Some(delivery) => {
                    self.accepted.lock().push(delivery);
                    204
                }
                None => 400,
            },
        };
        if self.mood == Mood::Mute {
            self.unanswered.push(request);
            return;
        }
        // The sender may have been killed meanwhile.
        _ = request.respond(Response::empty(status));
    }
}

fn delivery(request: &mut Request) -> Option<Delivery> {
    let key = request.headers().iter().find(|header| header.field.equiv("Idempotency-Key"))?.value.to_string();
    let notice = serde_json::from_reader(request.as_reader()).ok()?;
    (*request.method() == Method::Post).then_some(Delivery { key, notice })
}

/// What is wrong with deliveries, and how many of them are repetitions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Events that were never delivered.
    pub(crate) missing: usize,
    /// Deliveries that are no event, or have the key of another one.
    pub(crate) wrong: usize,
    /// Events that were delivered for the first time after a later one of their aggregate.
    pub(crate) out_of_order: usize,
    /// Deliveries of an event that was delivered before.
    pub(crate) repeated: usize,
}

/// Compares deliveries with the events, whose key is the event id.
pub(crate) fn findings(events: &[Delivery], deliveries: &[Delivery]) -> Findings {
    let events: BTreeMap<&str, &Notice> = events.iter().map(|event| (event.key.as_str(), &event.notice)).collect();
    let (mut seen, mut newest) = (BTreeSet::new(), BTreeMap::new());
    let mut found = Findings::default();
    for Delivery { key, notice } in deliveries {
        if events.get(key.as_str()) != Some(&notice) {
            found.wrong += 1;
        } else if !seen.insert(key.as_str()) {
            found.repeated += 1;
        } else if newest.insert(notice.aggregate.as_str(), notice.version).is_some_and(|last| last > notice.version) {
            found.out_of_order += 1;
        }
    }
    found.missing = events.len() - seen.len();
    found
}

/// All events of the database, as they are to be delivered.
pub(crate) fn events(client: &mut postgres::Client) -> Result<Vec<Delivery>, postgres::Error> {
    let sql = "SELECT event_id::text, aggregate_id, aggregate_version, event_type FROM events ORDER BY global_position";
    let rows = client.query(sql, &[])?;
    let event = |row: &postgres::Row| Delivery {
        key: row.get(0),
        notice: Notice { aggregate: row.get(1), version: row.get(2), event_type: row.get(3) },
    };
    Ok(rows.iter().map(event).collect())
}
