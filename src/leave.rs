//! Bounds how long a worker takes to leave, whatever its threads wait for.
//!
//! A worker that leaves lets its handlers finish what they have begun. But a statement may wait
//! without limit: for another session's lock, for a standby, or for a frozen server. So the
//! statements are cancelled after a time, which ends the first two waits. Threads that wait for a
//! frozen server are left behind: they end when the server answers or its connections break, and
//! the fence refuses what they would commit.

use std::time::Duration;

use crate::context::Context;
use crate::error::{Error, field};
use crate::threads::{Crew, safely, spawn_apart};

/// How long the threads have to end after their statements have been cancelled.
const AFTER_CANCEL: Duration = Duration::from_secs(3);

/// Starts the thread that waits for the stop signal and then bounds the time that the crew takes to
/// end. The thread itself is not a member of the crew.
pub(crate) fn bound(crew: &Crew, context: &Context, patience: Duration) -> Result<(), Error> {
    // Does not clone the whole context: this thread may end after the worker, and by then it must
    // not hold what belongs to the worker, such as its metrics.
    let (crew, board, database) = (crew.clone(), context.board.clone(), context.database.clone());
    spawn_apart("pup-leave", move || {
        _ = crew.stop().heard().recv();
        let running = crew.running_after(Some(patience));
        if running.is_empty() {
            return;
        }
        // The application's logger may panic.
        safely(|| {
            log::warn!(
                "leaving takes too long, cancelling statements: replica_set={} worker={} waited={patience:?} threads={threads}",
                field(&board.replica_set()),
                board.worker_id(),
                threads = field(&running.join(", "))
            );
        });
        // On a thread of its own, because a frozen server does not answer this either.
        if let Err(error) = spawn_apart("pup-cancel", move || database.cancel_all()) {
            safely(|| log::warn!("statements cannot be cancelled: error={error}", error = field(&error)));
        }
        let running = crew.running_after(Some(AFTER_CANCEL));
        if !running.is_empty() {
            safely(|| {
                log::error!(
                    "threads left behind: replica_set={} worker={} threads={threads}",
                    field(&board.replica_set()),
                    board.worker_id(),
                    threads = field(&running.join(", "))
                );
            });
            crew.leave_behind();
        }
    })
}
