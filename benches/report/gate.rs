//! What workers wait at until all of them are ready.

use std::time::Instant;

use postgres::Client;

use crate::support::server::connect;

/// A lock on the table of events. Workers can register, form a generation and deal the partitions out behind it, but read no event.
pub(crate) struct Gate(Client);

impl Gate {
    pub(crate) fn shut(url: &str) -> Self {
        let mut client = connect(url);
        client.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
        Self(client)
    }

    /// Lets everybody go on, and says when.
    pub(crate) fn open(mut self) -> Instant {
        let now = Instant::now();
        self.0.batch_execute("COMMIT").unwrap();
        now
    }
}
