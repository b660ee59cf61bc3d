//! A real browser, if one is installed.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::eventually;
use super::installed::installed;

const PATIENCE: Duration = Duration::from_secs(60);

/// Chromium, if it is installed.
pub(crate) fn chromium() -> Option<PathBuf> {
    installed(&["chromium", "chromium-browser", "google-chrome"])
}

/// The document after the page's scripts have run for some seconds of the browser's virtual time.
#[track_caller]
pub(crate) fn rendered(chromium: &PathBuf, url: &str) -> String {
    let profile = tempfile::tempdir().unwrap();
    let output = profile.path().join("dom.html");
    let mut browser = Browser(
        Command::new(chromium)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--virtual-time-budget=8000", "--dump-dom"])
            .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
            .arg(url)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&output).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let status = eventually("the browser is done", PATIENCE, || browser.0.try_wait().unwrap());
    assert!(status.success(), "{}: {status}", chromium.display());
    std::fs::read_to_string(output).unwrap()
}

/// Ends with the test.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
