//! The names of hosts and connection targets in logs and errors. Such a name never contains a
//! password.

use postgres::Config;
use postgres::config::Host;

pub(super) fn is_unix(host: &Host) -> bool {
    !matches!(host, Host::Tcp(_))
}

pub(super) fn host_text(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    }
}

/// `host:port/database as user`.
pub(super) fn describe(config: &Config) -> String {
    format!("{} as {}", place(config), config.get_user().unwrap_or("the system's user"))
}

/// `host:port/database`.
pub(super) fn place(config: &Config) -> String {
    let ports = config.get_ports();
    let mut names: Vec<String> = config.get_hosts().iter().map(host_text).collect();
    if names.is_empty() {
        names = config.get_hostaddrs().iter().map(ToString::to_string).collect();
    }
    let places: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
            if name.contains(':') { format!("[{name}]:{port}") } else { format!("{name}:{port}") }
        })
        .collect();
    // The server's default for the database is the user's name.
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{}/{database}", places.join(","))
}
