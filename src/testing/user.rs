//! The user that a server runs as. PostgreSQL refuses to run as root.

use std::os::unix::fs::chown;
use std::path::Path;

use super::error::Error;
use super::output::output;

/// The user that the server runs as, if it is not the user of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Returns an unprivileged user if this process runs as root: `postgres`, or `nobody` if there is
/// no such user.
pub(super) fn user_of_server() -> Result<Option<User>, Error> {
    if !is_root() {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| {
            let uid = id(&["-u", name]).filter(|uid| *uid != 0)?;
            let gid = id(&["-g", name])?;
            Some(Some(User { uid, gid }))
        })
        .ok_or_else(|| {
            let problem = "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody`";
            Error::new(format!("{problem} to run it as"))
        })
}

/// Whether this process runs as root.
pub(super) fn is_root() -> bool {
    id(&["-u"]) == Some(0)
}

/// Makes the server's user the owner of a file or directory.
pub(super) fn give(path: &Path, user: Option<User>) -> std::io::Result<()> {
    match user {
        Some(user) => chown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

fn id(arguments: &[&str]) -> Option<u32> {
    output("id", arguments)?.trim().parse().ok()
}
