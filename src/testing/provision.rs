//! Finds or installs a private server's binaries.

use std::path::PathBuf;

use super::binaries::{OLDEST, checked, find};
use super::error::Error;
use super::install::install;

/// The environment variable that decides where the binaries come from.
const VARIABLE: &str = "PUPSOURCING_POSTGRES";

/// Returns where the server's binaries are, and installs them if there are none.
/// `PUPSOURCING_POSTGRES` changes this: it names their directory, or it is `never`, which installs
/// nothing.
pub(super) fn find_server() -> Result<PathBuf, Error> {
    let setting = std::env::var_os(VARIABLE).filter(|setting| !setting.is_empty());
    if let Some(dir) = setting.as_ref().filter(|setting| *setting != "never") {
        let wrong = |refusal| Error::new(format!("{VARIABLE} is {}: {refusal}", dir.display()));
        // Made absolute, because the server is started in another directory.
        let dir = std::path::absolute(dir).map_err(Error::cannot(format_args!("find {VARIABLE}")))?;
        return checked(&dir).map_err(wrong);
    }
    let found = find().or_else(|too_old| match setting {
        Some(_) => Err(format!("{too_old}{VARIABLE}=never: nothing was installed.\n")),
        None => install().map_err(|tried| format!("{too_old}{tried}")),
    });
    found.map_err(|details| {
        Error::new(format!(
            "PostgreSQL's server binaries, `initdb` and `postgres`, version {OLDEST} or later, were not found.\n\
             {details}Install them:\n  \
               Debian, Ubuntu   apt-get install postgresql\n  \
               Fedora, RHEL     dnf install postgresql-server\n  \
               Alpine           apk add postgresql\n  \
               Arch             pacman -S postgresql\n  \
               macOS            brew install postgresql@17\n\
             If they are somewhere else, set {VARIABLE} to that directory.\n\
             The other way is a server of yours: set DATABASE_URL to its URL, as a user who may create databases."
        ))
    })
}
