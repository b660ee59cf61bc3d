//! Checks the oldest Rust version that Cargo.toml promises.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::process::Command;

use serde_json::Value;

/// The version that the library's own code needs, regardless of its dependencies: for `if let`
/// chains.
const OWN_CODE: (u32, u32) = (1, 88);

/// The test reads the versions from the metadata, because a build would need a toolchain of that
/// version. Functions of the standard library are checked by clippy (`incompatible_msrv`), which
/// knows the version that introduced each.
#[test]
fn rust_version_is_the_lowest_that_builds() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let host = output(Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned())).arg("-vV"));
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc says what its host is");
    let metadata = output(Command::new(cargo).current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--offline",
        "--filter-platform",
        host,
    ]));
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let used: Vec<&Value> = metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| &node["id"]).collect();
    let needed: Vec<((u32, u32), &str)> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| used.contains(&&package["id"]) && package["name"] != env!("CARGO_PKG_NAME"))
        .filter_map(|package| Some((version(package["rust_version"].as_str()?), package["name"].as_str()?)))
        .collect();

    let promised = version(env!("CARGO_PKG_RUST_VERSION"));
    let newer: Vec<_> = needed.iter().filter(|(version, _)| *version > promised).collect();
    assert!(newer.is_empty(), "Cargo.toml promises {promised:?}, but these need more: {newer:?}");
    let lowest = needed.iter().map(|(version, _)| *version).max().unwrap_or(OWN_CODE).max(OWN_CODE);
    assert_eq!(promised, lowest, "the promise (left) could be as low as what is needed (right)");
}

fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split('.').map(|number| number.parse().expect("a version"));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
