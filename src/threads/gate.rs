//! Holds threads back until everything is ready for their work.
//!
//! With it, the threads of a worker are created before the worker registers. A failure to create
//! one then leaves nothing to undo.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Lets the waiting threads begin when it is opened. If it is dropped instead, they end.
#[derive(Debug)]
pub(crate) struct Gate {
    is_open: Arc<AtomicBool>,
    /// Its disconnection ends the wait of the threads.
    _closed: Sender<Infallible>,
}

/// The side on which the threads wait.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    is_open: Arc<AtomicBool>,
    closed: Receiver<Infallible>,
}

impl Gate {
    pub(super) fn new() -> (Self, Entry) {
        let (sender, closed) = bounded(0);
        let is_open = Arc::new(AtomicBool::new(false));
        (Self { is_open: is_open.clone(), _closed: sender }, Entry { is_open, closed })
    }

    pub(crate) fn open(self) {
        self.is_open.store(true, Ordering::Release);
    }
}

impl Entry {
    /// Waits until the gate is opened or dropped. Returns whether it was opened.
    pub(super) fn wait(&self) -> bool {
        // Nothing is ever sent.
        _ = self.closed.recv();
        self.is_open.load(Ordering::Acquire)
    }
}
