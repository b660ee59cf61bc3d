//! The screenshots of the status page for the README, and how they are taken.
//!
//! Two commands take them again, in about three minutes. They need Chromium, pngquant and, for the
//! same text as now, the font Inter (on Debian: `apt-get install chromium pngquant fonts-inter`).
//!
//! ```sh
//! cargo test --test it screenshots -- --ignored
//! pngquant --force --ext .png docs/status-*.png
//! ```

use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use pupsourcing_orchestrator::{Database, EventStore, ExpectedVersion, Fold, Names};

use crate::support::browser::{Page, chromium};
use crate::support::worker_process::WorkerProcess;
use crate::support::{database, eventually};

#[path = "../../examples/support/mailbox.rs"]
#[allow(dead_code, reason = "the workers of the screenshots send no mails")]
mod mailbox;
#[path = "../../examples/support/shop.rs"]
#[allow(dead_code, reason = "the workers run its projections, in processes of their own")]
mod shop;

const SCHEMES: [&str; 2] = ["light", "dark"];

/// For both files. The README loads one of them, and every clone keeps all their versions.
const MOST_BYTES: usize = 300 * 1024;

/// The width of the window. GitHub shrinks wider pictures until their text is hard to read.
const WIDTH: u32 = 1000;
/// Pixels of a picture for one of the window, so that text is sharp on any screen.
const SCALE: f64 = 2.0;

/// The seconds for which the page has followed the projections when something happens.
const SECOND_JOINS: f64 = 8.0;
const THIRD_JOINS: f64 = 20.0;
const ONE_IS_KILLED: f64 = 80.0;
const FOURTH_JOINS: f64 = 92.0;
/// By then the plots are full.
const END: f64 = 121.0;

/// Slows one projection down. Earlier, it would lengthen the pauses, which wait for its batches.
const DELAY: &str = "
    CREATE FUNCTION take_longer() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(1.2); RETURN NULL; END $$;
    CREATE TRIGGER delay BEFORE INSERT ON revenue_per_day FOR EACH STATEMENT EXECUTE FUNCTION take_longer()";

const IS_COMPLETE: &str = "document.querySelectorAll('.workers .badge.running').length === 3";
const IS_BEHIND: &str = "replicaSets(known.answer)[0].overview.projections.every((projection) =>
    projection.name === 'revenue_per_day' ? projection.lag_seconds > 1 : projection.lag_seconds < 0.5)";

/// Hides the name of the machine that the screenshots are taken on.
const NAME_HOSTS: &str = "UPDATE orchestrator_workers w SET host = 'shop-worker-' || n
    FROM (SELECT id, row_number() OVER (ORDER BY started_at) AS n FROM orchestrator_workers) AS numbered
    WHERE numbered.id = w.id";
const IS_NAMED: &str = "replicaSets(known.answer)[0].overview.workers.every(({ host }) => host.startsWith('shop-'))";

fn file(scheme: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/status-{scheme}.png"))
}

#[test]
fn the_screenshots_are_small_png_files() {
    let mut bytes = 0;
    for file in SCHEMES.map(file) {
        let picture = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n"), "{} is no PNG", file.display());
        bytes += picture.len();
    }
    assert!(bytes <= MOST_BYTES, "{bytes} bytes, and {MOST_BYTES} are allowed: has pngquant been run?");
}

/// Three workers of the quickstart process a shop's events, after one was killed and replaced.
#[test]
#[ignore = "writes the screenshots, in about three minutes"]
fn screenshots_are_taken() {
    let chromium = chromium().expect("Chromium has to be installed");
    let database = database();
    let mut client = database.client();
    let revenue = shop::RevenuePerDay.table_sql().unwrap();
    for sql in [&Names::default().schema_sql(), shop::TABLES, &revenue] {
        client.batch_execute(sql).unwrap();
    }
    let url = database.url();
    let start = || WorkerProcess::start_for_quickstart(url);
    thread::scope(|scope| {
        let (_open, closed) = bounded(0);
        scope.spawn(move || sell(url, &closed));

        let mut first = start();
        let (_, address) = first.await_line(&["http://"]);
        let mut page = Page::open(&chromium, address.trim_end_matches("metrics"), WIDTH, SCALE);
        await_history(&mut page, SECOND_JOINS);
        let second = start();
        await_history(&mut page, THIRD_JOINS);
        let _third = start();
        await_history(&mut page, ONE_IS_KILLED);
        drop(second);
        await_history(&mut page, FOURTH_JOINS);
        let _fourth = start();
        await_page(&mut page, IS_COMPLETE);
        client.batch_execute(DELAY).unwrap();
        await_history(&mut page, END);
        client.execute(NAME_HOSTS, &[]).unwrap();
        // The same font on every machine that has it.
        page.value("document.body.style.fontFamily = 'Inter, system-ui, sans-serif'");
        await_page(&mut page, &format!("{IS_COMPLETE} && {IS_NAMED} && {IS_BEHIND}"));
        for scheme in SCHEMES {
            std::fs::write(file(scheme), page.picture("main", scheme)).unwrap();
        }
    });
}

/// Appends events until the channel is closed, at a rate that rises and falls.
fn sell(url: &str, closed: &Receiver<()>) {
    let mut client = Database::from_url(url).unwrap().connect().unwrap();
    let (store, begun) = (EventStore::default(), Instant::now());
    let rest = || Duration::from_secs_f64(0.016 + 0.010 * (begun.elapsed().as_secs_f64() * TAU / 45.0).sin());
    while closed.recv_timeout(rest()) == Err(RecvTimeoutError::Timeout) {
        let (stream, events) = shop::next_events().unwrap();
        let mut tx = client.transaction().unwrap();
        store.append(&mut tx, &stream, ExpectedVersion::Any, &events).unwrap();
        tx.commit().unwrap();
        store.hint(&mut client);
    }
}

#[track_caller]
fn await_history(page: &mut Page, seconds: f64) {
    let spans = "[...known.progress.values()].map((points) => points.at(-1).at - points[0].at)";
    await_page(page, &format!("known.progress.size && Math.min(...{spans}) > {seconds}"));
}

#[track_caller]
fn await_page(page: &mut Page, expression: &str) {
    let patience = Duration::from_secs(150);
    eventually(expression, patience, || (page.value(expression) == true).then_some(()));
}
