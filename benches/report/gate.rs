//! What workers wait at until all of them are ready.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Retry, Tx};

use crate::support::server::connect;

/// Of an advisory lock. The library's have one key of 64 bits.
const KEY: &str = "1, 1";

/// A lock in a database. A handler refuses its first event for as long as somebody else holds it; so the workers can deal the partitions
/// out, make their connections and read the first batch, and then do nothing but come back every millisecond.
pub(crate) struct Gate(Client);

impl Gate {
    pub(crate) fn shut(url: &str) -> Self {
        let mut client = connect(url);
        client.batch_execute(&format!("SELECT pg_advisory_lock({KEY})")).unwrap();
        Self(client)
    }

    /// Lets everybody go on, and says when.
    pub(crate) fn open(mut self) -> Instant {
        let now = Instant::now();
        self.0.batch_execute(&format!("SELECT pg_advisory_unlock({KEY})")).unwrap();
        now
    }
}

/// How those who come to a gate come back.
pub(crate) fn patience() -> Retry {
    let delay = Duration::from_millis(1);
    Retry::default().attempts(u32::MAX).first_delay(delay).longest_delay(delay)
}

/// A handler's side of it.
#[derive(Debug, Default)]
pub(crate) struct Passage {
    is_open: AtomicBool,
}

impl Passage {
    /// An error while the gate is shut. Once it was open it is not looked at again.
    pub(crate) fn pass(&self, tx: &mut Tx<'_>) -> Result<(), BoxError> {
        if self.is_open.load(Ordering::Relaxed) {
            return Ok(());
        }
        let sql = format!("SELECT pg_try_advisory_xact_lock_shared({KEY})");
        if !tx.query_one(&sql, &[])?.get::<_, bool>(0) {
            return Err("the gate is shut".into());
        }
        self.is_open.store(true, Ordering::Relaxed);
        Ok(())
    }
}
