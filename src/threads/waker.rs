//! Wakes another thread, which then checks what there is to do.

use crossbeam_channel::{Receiver, Sender, bounded};

/// Wakes one thread. Waking never blocks, and no wake-up is lost: several become one while the
/// thread is busy.
#[derive(Debug, Clone)]
pub(crate) struct Waker(Sender<()>);

impl Waker {
    /// Creates a waker, and the receiver on which the woken thread waits.
    pub(crate) fn new() -> (Self, Receiver<()>) {
        let (sender, woken) = bounded(1);
        (Self(sender), woken)
    }

    pub(crate) fn wake(&self) {
        // Full: the thread has not taken an earlier wake-up yet. Disconnected: it has ended.
        _ = self.0.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_wake_ups_become_one_and_none_blocks() {
        let (waker, woken) = Waker::new();
        waker.wake();
        waker.clone().wake();
        assert!(woken.try_recv().is_ok());
        assert!(woken.try_recv().is_err(), "one is enough");
        waker.wake();
        assert!(woken.try_recv().is_ok(), "what comes later is not lost");
        drop(woken);
        waker.wake();
    }
}
