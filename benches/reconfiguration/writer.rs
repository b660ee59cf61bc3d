//! Appends events all the time, so that there is always something to process.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use postgres::{Client, NoTls};

use crate::support::insert::insert;

/// How often events are appended.
const TICK: Duration = Duration::from_millis(100);

/// Appends events to every partition, regardless of their number, and continues after restarts of
/// the server.
pub(crate) struct Writer {
    go_on: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(client: &mut Client, url: &str) -> Self {
        // One aggregate in the middle of each 64th of the key space.
        let rows = client
            .query(
                "SELECT DISTINCT ON (key / 1024) id FROM (
                     SELECT 'thing-' || i AS id, (hashtextextended('thing-' || i, 0) & 65535)::int AS key
                     FROM generate_series(1, 10000) AS i) AS things
                 ORDER BY key / 1024, abs(key % 1024 - 512)",
                &[],
            )
            .unwrap();
        let things: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(things.len(), 64);
        let (go_on, stop) = bounded(0);
        let url = url.to_owned();
        let thread = thread::Builder::new().name("writer".into()).spawn(move || {
            let mut version = 0;
            // Nothing is ever sent.
            while stop.recv_timeout(Duration::from_millis(10)) == Err(RecvTimeoutError::Timeout) {
                // Fails while the server is down.
                if let Ok(client) = Client::connect(&url, NoTls) {
                    _ = write(client, &things, &mut version, &stop);
                }
            }
        });
        Self { go_on: Some(go_on), thread: Some(thread.unwrap()) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.go_on = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn write(mut client: Client, things: &[String], version: &mut i64, stop: &Receiver<()>) -> Result<(), postgres::Error> {
    let store = pupsourcing_orchestrator::EventStore::default();
    let sql = insert("unnest($1::text[]) AS id", &[("aggregate_id", "id"), ("aggregate_version", "$2")]);
    loop {
        *version += 1;
        client.execute(&sql, &[&things, &*version])?;
        store.hint(&mut client);
        if stop.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
}
