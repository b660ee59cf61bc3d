//! Waking another thread, so that it looks for itself what there is to do.

use crossbeam_channel::{Receiver, Sender, bounded};

/// Wakes one thread. Waking never blocks, and no wake-up is lost: several become one if the thread
/// is busy meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct Waker(Sender<()>);

impl Waker {
    /// A waker, and what the thread that it wakes waits on.
    pub(crate) fn new() -> (Self, Receiver<()>) {
        let (sender, woken) = bounded(1);
        (Self(sender), woken)
    }

    pub(crate) fn wake(&self) {
        // Full: the thread has yet to take an earlier wake-up. Disconnected: it has ended.
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
