//! The connections in use, so that a worker that has to leave can cancel what they wait for.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;
use postgres::{CancelToken, Client};

/// A connection, which goes back to where it came from when it is dropped: to a pool, or it is
/// closed.
pub(crate) type PooledClient = Box<dyn DerefMut<Target = Client> + Send>;

/// The connections that a worker uses. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct InUse {
    cells: Arc<Mutex<Cells>>,
}

#[derive(Default)]
struct Cells {
    tokens: BTreeMap<u64, CancelToken>,
    next: u64,
}

impl InUse {
    /// Counts a connection as in use until it is dropped.
    pub(super) fn watch(&self, client: PooledClient) -> PooledClient {
        let mut cells = self.cells.lock();
        let number = cells.next;
        cells.next += 1;
        cells.tokens.insert(number, client.cancel_token());
        drop(cells);
        Box::new(Watched { client, number, in_use: self.clone() })
    }

    pub(super) fn tokens(&self) -> Vec<CancelToken> {
        self.cells.lock().tokens.values().cloned().collect()
    }
}

struct Watched {
    client: PooledClient,
    number: u64,
    in_use: InUse,
}

impl Deref for Watched {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Watched {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.in_use.cells.lock().tokens.remove(&self.number);
    }
}
