//! What a URL says about TLS. The module `tls` decides whether this build supports it.

use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "only TLS reads the path"))]
pub(super) enum Roots {
    /// The CAs that the operating system trusts.
    System,
    File(PathBuf),
}

/// What the URL says about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "only TLS needs more than the mode"))]
pub(super) struct Tls {
    pub(super) mode: Mode,
    pub(super) roots: Option<Roots>,
    /// The client's own certificate and its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    /// TLS from the first byte on, which servers support since version 17.
    pub(super) direct: bool,
}

impl Mode {
    /// The mode as the URL names it.
    #[cfg(not(feature = "tls"))]
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}
