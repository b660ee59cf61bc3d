//! A real browser, if one is installed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually;
use super::installed::installed;

/// The margin of a picture around its element, in pixels of the page.
const MARGIN: f64 = 16.0;

const PATIENCE: Duration = Duration::from_secs(60);

/// The options for a browser without a window and with only what the page needs.
const QUIETLY: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

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
            .args(QUIETLY)
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

/// A page that stays open, in a browser that takes commands (Chrome's `DevTools` protocol).
///
/// Unlike the browser of [`rendered`], this one runs in real time.
pub(crate) struct Page {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The number of the last command.
    sent: u64,
    /// The session of the page, to which commands are sent; null for the browser itself.
    session: Value,
    browser: Browser,
    profile: TempDir,
}

impl Page {
    /// Opens the page in a window of this width. A pixel of the window is `scale` pixels wide in a
    /// picture.
    pub(crate) fn open(chromium: &Path, url: &str, width: u32, scale: f64) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The browser reads commands from descriptor 3 and writes answers to 4.
        let mut browser = Command::new("/bin/sh")
            .args(["-c", r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#, "browser"])
            .arg(chromium)
            .args(QUIETLY)
            .args(["--remote-debugging-pipe", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (commands, answers) = (browser.stdin.take().unwrap(), BufReader::new(browser.stdout.take().unwrap()));
        let browser = Browser(browser);
        let mut page = Self { commands, answers, sent: 0, session: Value::Null, browser, profile };
        let target = page.call("Target.createTarget", &json!({ "url": "about:blank" }))["targetId"].take();
        let attached = page.call("Target.attachToTarget", &json!({ "targetId": target, "flatten": true }));
        page.session = attached["sessionId"].clone();
        let window = json!({ "width": width, "height": 1000, "deviceScaleFactor": scale, "mobile": false });
        page.call("Emulation.setDeviceMetricsOverride", &window);
        let answer = page.call("Page.navigate", &json!({ "url": url }));
        assert!(answer["errorText"].is_null(), "{url}: {answer}");
        eventually("the page is loaded", PATIENCE, || (page.value("document.readyState") == "complete").then_some(()));
        page
    }

    /// The value of an expression of JavaScript.
    #[track_caller]
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", &asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// A PNG of the first element that the selector matches, with a margin, in this colour scheme.
    pub(crate) fn picture(&mut self, selector: &str, scheme: &str) -> Vec<u8> {
        let preference = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", &json!({ "features": preference }));
        let area = self.value(&format!("document.querySelector('{selector}').getBoundingClientRect().toJSON()"));
        let of = |side: &str, more: f64| area[side].as_f64().unwrap() + more;
        let clip = json!({
            "x": of("x", -MARGIN),
            "y": of("y", -MARGIN),
            "width": of("width", 2.0 * MARGIN),
            "height": of("height", 2.0 * MARGIN),
            "scale": 1,
        });
        let asked = json!({ "format": "png", "clip": clip, "captureBeyondViewport": true });
        let picture = self.call("Page.captureScreenshot", &asked);
        BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()
    }

    #[track_caller]
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.sent += 1;
        let mut command = json!({ "id": self.sent, "method": method, "params": parameters });
        if !self.session.is_null() {
            command["sessionId"] = self.session.clone();
        }
        write!(self.commands, "{command}\0").unwrap();
        loop {
            let mut answer = Vec::new();
            self.answers.read_until(0, &mut answer).unwrap();
            assert_eq!(answer.pop(), Some(0), "the browser has ended before it has answered {method}");
            let mut answer: Value = serde_json::from_slice(&answer).unwrap();
            // A message without a number is an event, and no command asks for events.
            if answer["id"] == self.sent {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].take();
            }
        }
    }
}
