//! The host names under which the status is served. Pure.
//!
//! A foreign site can let its own name resolve to the address of this server (DNS rebinding). The
//! browser then treats both as one site, and lets a page of that site read the answers. The request
//! still has the site's name in its `Host` header. So the status is served only under names that no
//! foreign site has. IP addresses need no list, because this attack needs a name.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

/// The host names under which the status is served, besides `localhost` and every IP address.
#[derive(Debug, Default)]
pub(super) struct HostNames(BTreeSet<String>);

impl HostNames {
    /// Adds a host, or the host of an address such as `metrics.example:9090`.
    pub(super) fn add(&mut self, host: &str) {
        self.0.extend(Some(name(host)).filter(|name| !name.is_empty()));
    }

    /// Returns the first of the request's hosts under which the status is not served. A request
    /// without a host does not come from a browser.
    pub(super) fn stranger<'a>(&self, hosts: &'a [String]) -> Option<&'a str> {
        hosts.iter().map(String::as_str).find(|host| !self.has(&name(host)))
    }

    fn has(&self, name: &str) -> bool {
        name == "localhost" || name.parse::<IpAddr>().is_ok() || self.0.contains(name)
    }
}

/// Returns the host without its port, in the form that is compared.
fn name(host: &str) -> String {
    let host = host.trim();
    let without_port = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None if host.parse::<Ipv6Addr>().is_ok() => host,
        None => host.split(':').next().unwrap_or_default(),
    };
    without_port.strip_suffix('.').unwrap_or(without_port).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_served(names: &HostNames, host: &str) -> bool {
        names.stranger(&[host.to_owned()]).is_none()
    }

    #[test]
    fn addresses_and_localhost_are_served_and_foreign_names_are_not() {
        let mut names = HostNames::default();
        names.add("0.0.0.0:9090");
        for host in
            ["localhost", "LOCALHOST:9090", "localhost.", "127.0.0.1", "10.1.2.3:80", "[::1]", "[fe80::1]:9090", "::1"]
        {
            assert!(is_served(&names, host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9090",
            "localhost.evil.example",
            "evil.localhost",
            "127.0.0.1.evil.example",
            "[evil.example]:9090",
            "127.0.0.1@evil.example",
            "",
        ] {
            assert!(!is_served(&names, host), "{host}");
        }
        assert_eq!(names.stranger(&[]), None, "no browser leaves the header out");
        let several = ["localhost".to_owned(), "evil.example".to_owned()];
        assert_eq!(names.stranger(&several), Some("evil.example"));
    }

    #[test]
    fn the_bound_host_and_the_allowed_ones_are_served() {
        let mut names = HostNames::default();
        names.add("Metrics.example:0");
        names.add("Status.example.:8443");
        for host in ["metrics.example:9090", "status.example", "STATUS.example:80"] {
            assert!(is_served(&names, host), "{host}");
        }
        names.add("");
        assert!(!is_served(&names, "other.example") && !is_served(&names, "example") && !is_served(&names, ""));
    }
}
