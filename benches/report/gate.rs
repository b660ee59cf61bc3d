//! A gate at which workers wait until all of them are ready.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Retry, Tx};

use crate::support::server::connect;

/// The key of an advisory lock. The library's own locks have a single key of 64 bits.
const KEY: &str = "1, 1";

/// A lock in a database. A handler refuses its first event while another session holds the lock. So
/// the workers can distribute the partitions, open their connections and read the first batch.
/// After that, they only retry every millisecond.
pub(crate) struct Gate(Client);

impl Gate {
    pub(crate) fn shut(url: &str) -> Self {
        let mut client = connect(url);
        client.batch_execute(&format!("SELECT pg_advisory_lock({KEY})")).unwrap();
        Self(client)
    }

    /// Lets all workers continue, and returns the time.
    pub(crate) fn open(mut self) -> Instant {
        let now = Instant::now();
        self.0.batch_execute(&format!("SELECT pg_advisory_unlock({KEY})")).unwrap();
        now
    }
}

/// Returns how often handlers retry at the gate.
pub(crate) fn patience() -> Retry {
    let delay = Duration::from_millis(1);
    Retry::default().attempts(u32::MAX).first_delay(delay).longest_delay(delay)
}

/// A handler's side of the gate.
#[derive(Debug, Default)]
pub(crate) struct Passage {
    is_open: AtomicBool,
}

impl Passage {
    /// Returns an error while the gate is shut. After it was open once, the lock is not checked
    /// again.
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
