//! How the process is asked to stop.

use std::thread;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::field;

/// Becomes ready with the first SIGTERM or SIGINT, for [`Orchestrator::run`](crate::Orchestrator::run).
/// A second one ends the process at once, whatever it is busy with: with code 128 plus the signal's
/// number.
///
/// [`main`](super::main) uses it; it is public for programs with a `main` of their own, which call it
/// once.
pub fn shutdown_signal() -> std::io::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (sender, receiver) = bounded(1);
    thread::Builder::new().name("pup-signals".into()).spawn(move || {
        let mut signals = signals.forever();
        if let Some(signal) = signals.next() {
            log::info!("stopping: signal={signal}", signal = field(&signal));
            _ = sender.send(());
        }
        if let Some(signal) = signals.next() {
            log::warn!("exiting at once: signal={signal}", signal = field(&signal));
            std::process::exit(128 + signal);
        }
    })?;
    Ok(receiver)
}
