//! The signals that ask the process to stop.

use std::thread;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::field;

/// Returns a receiver that becomes ready with the first SIGTERM or SIGINT, for
/// [`Orchestrator::run`](crate::Orchestrator::run). A second signal ends the process at once, in
/// any case, with code 128 plus the signal's number.
///
/// [`main`](super::main) calls this function. It is public for programs with a `main` of their own,
/// which must call it only once.
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
