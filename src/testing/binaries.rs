//! Finds the binaries of a PostgreSQL server on this machine.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::output::output;
use super::sources::{cache, places_in};
use super::user::is_root;

/// The oldest major version that the library works with.
pub(super) const OLDEST: u32 = 14;

/// Why a directory does not have a server's binaries.
pub(super) enum Refusal {
    Missing,
    TooOld(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("`initdb` and `postgres` are not both there"),
            Self::TooOld(version) => write!(f, "{version}, but {OLDEST} or later is needed"),
        }
    }
}

/// Returns the directory itself if it has a server that is new enough. A client's development
/// package has only `pg_config`.
pub(super) fn checked(dir: &Path) -> Result<PathBuf, Refusal> {
    if !dir.join("initdb").is_file() {
        return Err(Refusal::Missing);
    }
    let said = output(dir.join("postgres"), &["--version"]).ok_or(Refusal::Missing)?;
    // "postgres (PostgreSQL) 17.2 (Debian 17.2-1)", "postgres (PostgreSQL) 18beta1"
    let version = said.split_whitespace().nth(2).unwrap_or_default();
    match leading_number(version) {
        Some(major) if major >= OLDEST => Ok(dir.to_owned()),
        _ => Err(Refusal::TooOld(said.trim().to_owned())),
    }
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end)?.parse().ok()
}

/// Returns the first of the usual places that has a server that is new enough. If there is none,
/// returns a line for each server that is too old.
pub(super) fn find() -> Result<PathBuf, String> {
    let mut places = Vec::new();
    if let Some(dir) = output("pg_config", &["--bindir"]) {
        places.push(PathBuf::from(dir.trim()));
    }
    if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
    }
    for (parent, prefix, rest) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/usr/libexec", "postgresql", ""),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
        ("/opt/local/lib", "postgresql", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ] {
        places.extend(newest_first(parent, prefix).into_iter().map(|dir| dir.join(rest)));
    }

    places.extend(cache(is_root()).into_iter().flat_map(|cache| places_in(&cache).collect::<Vec<_>>()));

    let mut too_old = String::new();
    for place in places {
        match checked(&place) {
            Ok(dir) => return Ok(dir),
            Err(Refusal::Missing) => {}
            Err(refusal @ Refusal::TooOld(_)) => {
                let _ = writeln!(too_old, "Found in {}: {refusal}.", place.display());
            }
        }
    }
    Err(too_old)
}

/// Returns the directories `parent/prefixN`, the highest N first.
fn newest_first(parent: &str, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let number = leading_number(name.to_str()?.strip_prefix(prefix)?)?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, dir)| dir).collect()
}
