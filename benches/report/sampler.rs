//! Looking at something again and again while something else goes on.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, tick};

/// A thread that looks; what it saw is to be had at the end.
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
