//! Runs a test in a process of its own, for tests that change their process: its logger, its
//! threads, its memory.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{database, eventually};

/// The variable that tells the process the URL of its database.
const DATABASE: &str = "PUPSOURCING_TEST_ALONE";

const PATIENCE: Duration = Duration::from_secs(60);

/// Executes the body of the calling test in a process of its own, with the URL of a fresh database.
#[track_caller]
pub(crate) fn alone(body: impl FnOnce(&str)) {
    if let Ok(url) = std::env::var(DATABASE) {
        return body(&url);
    }
    let database = database();
    let test = thread::current().name().unwrap().to_owned();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([&test, "--exact", "--nocapture", "--test-threads=1"])
        .env(DATABASE, database.url())
        // One heap for all threads, so that a limit of memory is reached at the same place each
        // time.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("the process ends", PATIENCE, || process.try_wait().unwrap())
    }));
    if ended.is_err() {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    let ended = ended.unwrap();
    assert!(ended.success(), "{test}, in a process of its own: {ended}");
}
