//! The limits that detect a server that went away silently.

use std::time::Duration;

use postgres::Config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const KEEPALIVES_IDLE: Duration = Duration::from_secs(5);
pub(super) const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const KEEPALIVES_RETRIES: u32 = 3;
pub(super) const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Sets the limits for whose names `is_set` returns false.
pub(super) fn fill(config: &mut Config, is_set: impl Fn(&str) -> bool) {
    if !is_set("connect_timeout") {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if !is_set("tcp_user_timeout") {
        config.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    if !is_set("keepalives_idle") {
        config.keepalives_idle(KEEPALIVES_IDLE);
    }
    if !is_set("keepalives_interval") {
        config.keepalives_interval(KEEPALIVES_INTERVAL);
    }
    if !is_set("keepalives_retries") {
        config.keepalives_retries(KEEPALIVES_RETRIES);
    }
}
