//! The connections in use, so that a worker that has to leave can cancel their statements.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use postgres::CancelToken;

/// The connections that a worker uses. Clones share the same connections.
#[derive(Clone, Default)]
pub(super) struct InUse {
    cells: Arc<Mutex<Cells>>,
}

#[derive(Default)]
struct Cells {
    tokens: BTreeMap<u64, CancelToken>,
    next: u64,
}

/// Marks a connection as in use until it is dropped.
pub(super) struct Use {
    number: u64,
    in_use: InUse,
}

impl InUse {
    pub(super) fn add(&self, token: CancelToken) -> Use {
        let mut cells = self.cells.lock();
        let number = cells.next;
        cells.next += 1;
        cells.tokens.insert(number, token);
        Use { number, in_use: self.clone() }
    }

    pub(super) fn tokens(&self) -> Vec<CancelToken> {
        self.cells.lock().tokens.values().cloned().collect()
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.in_use.cells.lock().tokens.remove(&self.number);
    }
}
