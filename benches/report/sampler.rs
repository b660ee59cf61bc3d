//! Takes samples repeatedly while something else runs.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, tick};

/// A thread that takes samples, and returns them in the end.
pub(crate) struct Sampler<T> {
    go_on: Sender<()>,
    thread: JoinHandle<Vec<T>>,
}

impl<T: Send + 'static> Sampler<T> {
    pub(crate) fn start(every: Duration, mut look: impl FnMut() -> T + Send + 'static) -> Self {
        let (go_on, stop) = bounded::<()>(0);
        let thread = thread::Builder::new().name("sampler".into()).spawn(move || {
            let tick = tick(every);
            let mut seen = Vec::new();
            loop {
                crossbeam_channel::select! {
                    recv(stop) -> _ => return seen,
                    recv(tick) -> _ => seen.push(look()),
                }
            }
        });
        Self { go_on, thread: thread.unwrap() }
    }

    pub(crate) fn stop(self) -> Vec<T> {
        drop(self.go_on);
        self.thread.join().unwrap()
    }
}
