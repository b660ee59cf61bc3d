//! Waits for the database, even on a thread that belongs to an asynchronous runtime.
//!
//! The database client executes a tokio runtime of its own whenever it waits, also in its
//! destructor. tokio panics if the thread already executes a runtime. So on such a thread, the
//! library uses the client on another thread. The caller's thread is blocked nevertheless.

use std::io;
use std::panic::resume_unwind;
use std::thread::Builder;

use crossbeam_channel::bounded;

const THREAD: &str = "pup-blocking";

/// Executes work that waits for the database. The error is that of starting a thread.
pub(crate) fn blocking<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    if !is_in_runtime() {
        return Ok(work());
    }
    std::thread::scope(|scope| {
        let thread = Builder::new().name(THREAD.to_owned()).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Drops a value whose destructor waits for the database.
pub(crate) fn drop_blocking<T: Send + 'static>(value: T) {
    if !is_in_runtime() {
        return drop(value);
    }
    let (sender, receiver) = bounded(1);
    let Ok(thread) = Builder::new().name(THREAD.to_owned()).spawn(move || drop(receiver.recv())) else {
        // A destructor cannot report the error. The connection leaks, because there is no thread
        // that could close it.
        return std::mem::forget(value);
    };
    // The thread waits for the value, so it is received.
    _ = sender.send(value);
    _ = thread.join();
}

/// Also true on a runtime's thread for blocking work, where the other thread is unnecessary but
/// harmless.
fn is_in_runtime() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}
