//! Installs the binaries of a PostgreSQL server on a machine that has none.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use rustix::fs::{FlockOperation, flock};

use super::binaries::{OLDEST, checked, find};
use super::output::output;
use super::sources::{Kind, SOURCES, Source, cache};
use super::user::is_root;

/// How long the installation from one source may take.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Installs the binaries from the first source that has them, and returns where they are. If there
/// is none, returns a line for each source that was tried.
///
/// One process at a time installs them. The others wait, and find what it has installed. Each
/// process tries only once.
pub(super) fn install() -> Result<PathBuf, String> {
    static OUTCOME: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    OUTCOME.get_or_init(install_once).clone()
}

fn install_once() -> Result<PathBuf, String> {
    let is_root = is_root();
    let cache = cache(is_root).ok_or("There is no cache folder to install them into: HOME is not set.\n")?;
    let _lock = lock(&cache).map_err(|error| format!("They cannot be installed in {}: {error}.\n", cache.display()))?;
    if let Ok(found) = find() {
        return Ok(found);
    }
    let mut tried = String::new();
    for source in SOURCES.iter().filter(|source| is_installed(source.program)) {
        let privilege = match source.kind {
            Kind::System if is_root => &[][..],
            Kind::System if output("sudo", &["-n", "true"]).is_some() => &["sudo", "-n"],
            Kind::System => continue,
            Kind::Homebrew if is_root => continue,
            Kind::Homebrew | Kind::Folder { .. } => &[],
        };
        match source.install(&cache, privilege) {
            Ok(found) => return Ok(found),
            Err(problem) => {
                // Writing to a String cannot fail.
                _ = writeln!(tried, "{} could not install them: {problem}", source.program);
            }
        }
    }
    Err(tried)
}

impl Source {
    fn install(&self, cache: &Path, privilege: &[&str]) -> Result<PathBuf, String> {
        let program = self.program;
        // Written so that a test harness does not capture it, because the test then waits for about
        // a minute and changes the machine.
        _ = writeln!(
            io::stderr(),
            "PostgreSQL's server binaries are missing: installing them with {program} \
             (PUPSOURCING_POSTGRES=never prevents it)"
        );
        let Kind::Folder { name, bin } = self.kind else {
            self.run(privilege, Path::new(""))?;
            return find().map_err(|too_old| format!("it succeeded, but they are not in a usual place. {too_old}"));
        };
        // An unfinished installation has another name, so that it is never used.
        let failed = |error: io::Error| error.to_string();
        let begun = tempfile::Builder::new().prefix("begun-").tempdir_in(cache).map_err(failed)?;
        self.run(privilege, begun.path())?;
        checked(&begun.path().join(bin)).map_err(|refusal| refusal.to_string())?;
        // If this process is root, the server runs as another user, who must be able to read the
        // folder.
        fs::set_permissions(begun.path(), Permissions::from_mode(0o755)).map_err(failed)?;
        let folder = cache.join(name);
        // Removes an earlier installation that can no longer be used.
        _ = fs::remove_dir_all(&folder);
        fs::rename(begun.keep(), &folder).map_err(failed)?;
        Ok(folder.join(bin))
    }

    /// Runs the script to its end. An error ends with the last lines that the script wrote.
    fn run(&self, privilege: &[&str], folder: &Path) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        let words = privilege.iter().chain(&["sh", "-eu", "-c"]).copied();
        let begin = format!("umask 022; oldest={OLDEST} folder=$1\n");
        let (first, rest) = (privilege.first().unwrap_or(&"sh"), words.skip(1));
        let mut said = tempfile::tempfile().map_err(failed)?;
        let mut process = Command::new(first)
            .args(rest)
            .args([&format!("{begin}{}", self.script), self.program])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(said.try_clone().map_err(failed)?)
            .stderr(said.try_clone().map_err(failed)?)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let group = format!("-{}", process.id());
        let (sender, ended) = bounded::<io::Result<ExitStatus>>(1);
        thread::Builder::new()
            .name("pup-pg-install".to_owned())
            .spawn(move || sender.send(process.wait()))
            .map_err(failed)?;
        let outcome = match ended.recv_timeout(PATIENCE) {
            Ok(Ok(status)) if status.success() => return Ok(()),
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                _ = output("kill", &["-s", "TERM", "--", &group]);
                format!("not ready after {PATIENCE:?}")
            }
        };
        let mut text = String::new();
        said.rewind().and_then(|()| said.read_to_string(&mut text)).map_err(failed)?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(5)..).unwrap_or(&[]);
        Err(format!("{outcome}\n    {}", last.join("\n    ")))
    }
}

/// Creates the folder, and waits until no other process is installing. The lock is held until the
/// file is dropped.
fn lock(cache: &Path) -> io::Result<File> {
    fs::create_dir_all(cache)?;
    let file = File::options().create(true).truncate(false).write(true).open(cache.join("lock"))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
